"""Stable Diffusion 1.5, one step, distribution matching alone: the paper's first stage.

    dmd2 cache --pipeline=stable-diffusion-v1-5 --prompts=prompts.txt --out=caches/prompts
    dmd2 distill --config=configs/sd15.py --workdir=runs/sd15 \
        --config.model.pipeline=stable-diffusion-v1-5 --config.data.path=caches/prompts
    dmd2 export --workdir=runs/sd15 --out=sd15_one_step
    dmd2 sample --pipeline=sd15_one_step --prompt="a red fox in the snow" --out=fox.png

Teacher: the U-Net of the pipeline, a diffusers folder. Data: prompts alone; there is no GAN here.
docs/text_to_image.md goes through all of it.

Length: 3,900 cycles = 39,000 critic turns at the paper's global batch of 2,048, guidance 1.75.
Published: FID 9.28 (COCO 2014). Not run here; `dmd2 plan` says what it needs. Then sd15_gan.py.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config("stable_diffusion")
    config.name = "sd15"
    config.data.name = "latents"
    config.data.path = "caches/prompts"

    config.model.pipeline = "sd15"
    config.model.resolution = 64  # of latents: 512 pixels
    config.model.dtype = "bfloat16"
    config.model.remat = "block"

    config.teacher.objective = "eps"
    config.teacher.sampler_steps = 50

    config.distill.cycles = 3_900
    config.distill.batch_size = 2048
    config.distill.critic_turns = 10
    config.distill.student_times = (999,)
    config.distill.guidance = 1.75
    config.distill.denoising_weight = "eps"
    config.distill.gan_generator_weight = None
    config.distill.gan_critic_weight = None
    config.distill.gan_head_channels = 1280

    config.optim.generator_lr = 1e-5
    config.optim.critic_lr = 1e-5
    config.optim.ema_decays = ()  # one more copy of 860 M parameters; the paper has none

    config.log.grid_every = 500
    config.log.export_every = 500
    config.log.checkpoint_every = 100
    config.evaluate.batch_size = 16
    return config
