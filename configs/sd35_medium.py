"""Stable Diffusion 3.5 medium in four steps, by distribution matching alone.

    dmd2 verify --pipeline=stable-diffusion-3.5-medium
    dmd2 cache --pipeline=stable-diffusion-3.5-medium --prompts=prompts.txt \
        --out=caches/prompts_sd35
    dmd2 distill --config=configs/sd35_medium.py --workdir=runs/sd35_medium \
        --config.model.pipeline=stable-diffusion-3.5-medium
    dmd2 sample --workdir=runs/sd35_medium --prompt="a red fox in the snow" --out=fox.png

As a LoRA, teacher, student and critic in one copy of the network:

    dmd2 distill --config=configs/sd35_medium.py --workdir=runs/sd35_medium_lora \
        --config.model.pipeline=stable-diffusion-3.5-medium --config.distill.lora_rank=32 \
        --config.distill.lora_alpha=32 --config.distill.lora_critic=True \
        --config.optim.generator_lr=5e-5 --config.optim.critic_lr=5e-5

The student's times are equal parts of 1 to 0, shifted by 5. Batch, guidance, shift and rates are
those that DMDR (arXiv 2511.13649) gives for SD 3.5 large; 2,000 iterations are taken for cycles. K
is ours. The LoRA's settings were not searched for. Nothing is published of the medium model. Not
run here; `dmd2 plan` says what it needs.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config("sd3")
    config.name = "sd35_medium"
    config.data.name = "latents"
    config.data.path = "caches/prompts_sd35"

    config.model.pipeline = "sd35_medium"
    config.model.resolution = 128  # of latents: 1024 pixels
    config.model.dtype = "bfloat16"
    config.model.remat = "block"
    config.model.scan_layers = True

    config.teacher.objective = "flow"
    config.teacher.sampler_steps = 40

    config.distill.cycles = 2_000
    config.distill.batch_size = 32
    config.distill.critic_turns = 5
    config.distill.student_times = (1.0, 0.9375, 0.8333333, 0.625)  # 5 u / (1 + 4 u) of 1 .. 1/4
    config.distill.guidance = 4.0
    config.distill.denoising_weight = "flow"
    config.distill.critic_times = "logit_normal:0:1"
    config.distill.gan_generator_weight = None
    config.distill.gan_critic_weight = None

    config.optim.generator_lr = 1e-6
    config.optim.critic_lr = 2e-8
    config.optim.ema_decays = ()  # one more copy of the network

    config.log.grid_every = 500
    config.log.export_every = 500
    config.log.checkpoint_every = 100
    config.evaluate.batch_size = 8
    return config
