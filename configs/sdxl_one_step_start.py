"""SDXL in one step, its initialisation: regression on the teacher's ODE pairs.

    dmd2 make-pairs --config=configs/sdxl_one_step_start.py --out=pairs \
        --config.model.pipeline=stable-diffusion-xl-base-1.0
    dmd2 distill --config=configs/sdxl_one_step_start.py --workdir=runs/sdxl_start \
        --config.model.pipeline=stable-diffusion-xl-base-1.0 --config.distill.pairs=pairs
    dmd2 sample --workdir=runs/sdxl_start --prompt="a red fox in the snow" --out=fox.png

A U-Net that predicts noise cannot begin at one step of SDXL without it. Data: prompts alone. The
critic begins to follow the student meanwhile, one turn a cycle.

Length: 2,000 cycles of batch 256 on 10,000 pairs, as published. Not run here. Then
sdxl_one_step.py.
"""

from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config


def get_config() -> ConfigDict:
    """Return the config."""
    config = load_config("sdxl_one_step")
    config.name = "sdxl_one_step_start"
    config.data.path = "caches/prompts_xl"
    config.data.prompts = ""
    config.distill.start_from = ""
    config.distill.cycles = 2_000
    config.distill.batch_size = 256
    config.distill.critic_turns = 1
    config.distill.dm_weight = None
    config.distill.gan_generator_weight = None
    config.distill.gan_critic_weight = None
    config.distill.regression_weight = 1.0
    config.distill.regression_pairs = 10_000
    config.optim.generator_lr = 1e-5
    config.optim.critic_lr = 1e-5
    return config
