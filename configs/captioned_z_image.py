"""Z-Image's way on two CPU cores: real digits with captions, a small flow transformer, four steps.

    python -m examples.captioned_digits.make --family=z_image --out=runs/z  # images and a pipeline
    dmd2 cache --pipeline=runs/z/pipeline --images=runs/z/images --resolution=16 --out=runs/z/cache
    dmd2 train-teacher --config=configs/captioned_z_image.py --workdir=runs/z/teacher
    dmd2 distill --config=configs/captioned_z_image.py --workdir=runs/z/student \
        --config.teacher.weights=runs/z/teacher
    dmd2 sample --workdir=runs/z/student --prompt="a handwritten seven" --out=seven.png
    dmd2 export --workdir=runs/z/student --out=student

The pipeline is one of diffusers' (ZImagePipeline) with a transformer of 1.4 M parameters on latents
[8, 8, 4] of images of 16 pixels, a language model that reads the prompts' chat, and masks; the
teacher begins from random weights. docs/text_to_image.md has the figures.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config("z_image")
    config.name = "captioned_z_image"
    config.data.name = "latents"
    config.data.path = "runs/z/cache"

    config.model.pipeline = "runs/z/pipeline"
    config.model.resolution = 8

    config.teacher.objective = "flow"
    config.teacher.p_mean = 0.0
    config.teacher.p_std = 1.0
    config.teacher.steps = 3000
    config.teacher.batch_size = 64
    config.teacher.lr = 1e-3
    config.teacher.lr_schedule = "cosine"
    config.teacher.warmup = 200
    config.teacher.label_dropout = 0.1
    config.teacher.sampler_steps = 50

    config.distill.cycles = 300
    config.distill.batch_size = 32
    config.distill.critic_turns = 3
    config.distill.student_times = ()
    config.distill.student_steps = 4
    config.distill.guidance = 2.0
    config.distill.denoising_weight = "flow"
    config.distill.critic_times = "logit_normal:0:1"
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
