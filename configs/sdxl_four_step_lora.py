"""SDXL in four steps as a LoRA of rank 64: the student's base is the teacher itself, held once.

    dmd2 distill --config=configs/sdxl_four_step_lora.py --workdir=runs/sdxl_lora \
        --config.model.pipeline=stable-diffusion-xl-base-1.0
    dmd2 export --workdir=runs/sdxl_lora --out=sdxl_lora --lora
    dmd2 sample --workdir=runs/sdxl_lora --prompt="a red fox in the snow" --out=fox.png

The caches are those of sdxl_four_step.py. The critic is trained whole; with
--config.distill.lora_critic=True it is a LoRA of the same base too, which the paper did not try.

Length: 3,200 cycles = 16,000 critic turns. Published: FID 19.68 (COCO 2014, 10,000 prompts). Not
run here.
"""

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = load_config("sdxl_four_step")
    config.name = "sdxl_four_step_lora"
    config.distill.cycles = 3_200
    config.distill.lora_rank = 64
    config.distill.lora_alpha = 8.0
    config.optim.generator_lr = 5e-5
    config.optim.critic_lr = 5e-5
    return config
