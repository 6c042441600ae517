"""Stable Diffusion 3.5 large in four steps, by distribution matching alone.

    dmd2 verify --pipeline=stable-diffusion-3.5-large
    dmd2 cache --pipeline=stable-diffusion-3.5-large --prompts=prompts.txt --out=caches/prompts_sd35
    dmd2 distill --config=configs/sd35_large.py --workdir=runs/sd35_large \
        --config.model.pipeline=stable-diffusion-3.5-large
    dmd2 sample --workdir=runs/sd35_large --prompt="a red fox in the snow" --out=fox.png

The settings are sd35_medium.py's, which come from DMDR's for this model (arXiv 2511.13649: 1024
pixels, batch 32, shift 5, guidance 4, rates 1e-6 and 2e-8, 2,000 iterations). DMDR's critic is a
LoRA of rank 32; here it is trained whole, and sd35_large_lora.py has one copy of the network.

Published of four-step students of this model: SenseFlow, ImageReward 1.171 (the teacher 1.163).
Not run here; `dmd2 plan` says what it needs.
"""

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = load_config("sd35_medium")
    config.name = "sd35_large"
    config.model.pipeline = "sd35_large"
    return config
