"""Stable Diffusion 1.5, one step: the first stage's student goes on with a GAN, at a lower rate.

    dmd2 cache --pipeline=stable-diffusion-v1-5 --images=photos --out=caches/photos
    dmd2 distill --config=configs/sd15_gan.py --workdir=runs/sd15_gan \
        --config.model.pipeline=stable-diffusion-v1-5 --config.data.path=caches/photos \
        --config.data.prompts=caches/prompts --config.distill.start_from=runs/sd15
    dmd2 export --workdir=runs/sd15_gan --out=sd15_one_step
    dmd2 sample --pipeline=sd15_one_step --prompt="a red fox in the snow" --out=fox.png

Data: images with captions for the GAN; the student's prompts are those of sd15.py.

Length: 500 cycles = 5,000 critic turns. Published: FID 8.35 (COCO 2014). Not run here.
"""

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = load_config("sd15")
    config.name = "sd15_gan"
    config.data.path = "caches/photos"
    config.data.prompts = "caches/prompts"
    config.distill.start_from = "runs/sd15"
    config.distill.cycles = 500
    config.distill.gan_generator_weight = 1e-3
    config.distill.gan_critic_weight = 1e-2
    config.optim.generator_lr = 5e-7
    config.optim.critic_lr = 5e-7
    return config
