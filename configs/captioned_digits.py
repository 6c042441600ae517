"""Text to image on real digits with captions: a teacher and a four-step student on two CPU cores.

    python -m examples.captioned_digits.make --out=runs/captioned  # images, captions, a pipeline
    dmd2 cache --pipeline=runs/captioned/pipeline --images=runs/captioned/images --resolution=16 \
        --out=runs/captioned/cache
    dmd2 train-teacher --config=configs/captioned_digits.py --workdir=runs/captioned/teacher
    dmd2 distill --config=configs/captioned_digits.py --workdir=runs/captioned/student \
        --config.teacher.weights=runs/captioned/teacher
    dmd2 sample --workdir=runs/captioned/student --prompt="a handwritten seven" --out=seven.png

The pipeline is one of diffusers' (StableDiffusionPipeline) with a U-Net of 1.1 M parameters on
latents [8, 8, 4] of images of 16 pixels; everything else is as with Stable Diffusion 1.5.
docs/text_to_image.md has the figures.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config("stable_diffusion")
    config.name = "captioned_digits"
    config.data.name = "latents"
    config.data.path = "runs/captioned/cache"

    config.model.pipeline = "runs/captioned/pipeline"
    config.model.resolution = 8

    config.teacher.objective = "eps"
    config.teacher.steps = 4000
    config.teacher.batch_size = 64
    config.teacher.lr = 5e-4
    config.teacher.lr_schedule = "cosine"
    config.teacher.warmup = 200
    config.teacher.label_dropout = 0.1
    config.teacher.sampler_steps = 50

    config.distill.cycles = 300
    config.distill.batch_size = 32
    config.distill.critic_turns = 3
    config.distill.student_times = (999, 749, 499, 249)
    config.distill.guidance = 2.0
    config.distill.denoising_weight = "eps"
    config.distill.gan_head_channels = 64
    config.distill.shared_pass = True

    config.optim.generator_lr = 1e-4
    config.optim.critic_lr = 1e-4
    config.optim.lr_schedule = "cosine"
    config.optim.warmup = 20
    config.optim.b1 = 0.5
    config.optim.ema_decays = (0.97,)

    config.log.grid_every = 100
    config.log.export_every = 100
    config.log.teacher_grid_every = 1000
    config.log.checkpoint_every = 100
    return config
