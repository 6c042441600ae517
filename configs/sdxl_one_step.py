"""SDXL in one step, at t = 399, from a student that was begun by regression.

    dmd2 distill --config=configs/sdxl_one_step.py --workdir=runs/sdxl_one_step \
        --config.model.pipeline=stable-diffusion-xl-base-1.0 \
        --config.distill.start_from=runs/sdxl_start
    dmd2 export --workdir=runs/sdxl_one_step --out=sdxl_one_step
    dmd2 sample --pipeline=sdxl_one_step --prompt="a red fox in the snow" --out=fox.png

The caches are those of sdxl_four_step.py; the beginning is sdxl_one_step_start.py's.

Length: 4,800 cycles = 24,000 critic turns. Published: FID 19.01 (COCO 2014, 10,000 prompts). Not
run here.
"""

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = load_config("sdxl_four_step")
    config.name = "sdxl_one_step"
    config.distill.start_from = "runs/sdxl_start"
    config.distill.cycles = 4_800
    config.distill.student_times = (399,)
    return config
