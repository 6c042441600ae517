"""FLUX.1-dev in four steps as a LoRA: three players, one copy of the network.

    dmd2 verify --pipeline=FLUX.1-dev
    dmd2 cache --pipeline=FLUX.1-dev --prompts=prompts.txt --out=caches/prompts_flux
    dmd2 distill --config=configs/flux_dev.py --workdir=runs/flux_dev \
        --config.model.pipeline=FLUX.1-dev
    dmd2 sample --workdir=runs/flux_dev --prompt="a red fox in the snow" --out=fox.png

The teacher takes its guidance scale as an input (model.guidance, 3.5), and so do student and
critic: there is no second call of the teacher, and distill.guidance stays None. The student's four
times are equal parts with the teacher's shift, which follows the size of the image: at 1024 pixels
1, 0.905, 0.759, 0.513. Whole networks: --config.distill.lora_rank=0
--config.distill.lora_critic=False, with rates such as 1e-6.

Nothing is published of DMD2 with this model: batch, rank, rates and length are those of
sd35_large_lora.py, and were not searched for. Not run here; `dmd2 plan` says what it needs.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config("flux")
    config.name = "flux_dev"
    config.data.name = "latents"
    config.data.path = "caches/prompts_flux"

    config.model.pipeline = "flux_dev"
    config.model.resolution = 128  # of latents: 1024 pixels
    config.model.guidance = 3.5
    config.model.dtype = "bfloat16"
    config.model.remat = "block"
    config.model.scan_layers = True

    config.teacher.objective = "flow"
    config.teacher.sampler_steps = 28

    config.distill.cycles = 2_000
    config.distill.batch_size = 32
    config.distill.critic_turns = 5
    config.distill.student_times = ()
    config.distill.student_steps = 4
    config.distill.denoising_weight = "flow"
    config.distill.critic_times = "logit_normal:0:1"
    config.distill.gan_generator_weight = None
    config.distill.gan_critic_weight = None
    config.distill.lora_rank = 32
    config.distill.lora_alpha = 32.0
    config.distill.lora_critic = True

    config.optim.generator_lr = 5e-5
    config.optim.critic_lr = 5e-5
    config.optim.ema_decays = ()

    config.log.grid_every = 500
    config.log.export_every = 500
    config.log.checkpoint_every = 100
    config.evaluate.batch_size = 4
    return config
