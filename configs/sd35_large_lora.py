"""Stable Diffusion 3.5 large in four steps as a LoRA: three players, one copy of the network.

    dmd2 distill --config=configs/sd35_large_lora.py --workdir=runs/sd35_large_lora \
        --config.model.pipeline=stable-diffusion-3.5-large
    dmd2 sample --workdir=runs/sd35_large_lora --prompt="a red fox in the snow" --out=fox.png

The cache is that of sd35_large.py. Generator and critic are adapters of rank 32 of the teacher. The
rates are those of sdxl_four_step_lora.py and were not searched for; nothing is published of this
combination. Not run here; `dmd2 plan` says what it needs.
"""

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = load_config("sd35_large")
    config.name = "sd35_large_lora"
    config.distill.lora_rank = 32
    config.distill.lora_alpha = 32.0
    config.distill.lora_critic = True
    config.optim.generator_lr = 5e-5
    config.optim.critic_lr = 5e-5
    return config
