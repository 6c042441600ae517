"""FLUX.2-klein in four steps, as a LoRA: one copy of the network. One step by one flag.

    dmd2 verify --pipeline=FLUX.2-klein-base-4B
    dmd2 cache --pipeline=FLUX.2-klein-base-4B --prompts=prompts.txt --out=caches/prompts_klein
    dmd2 distill --config=configs/flux2_klein.py --workdir=runs/klein \
        --config.model.pipeline=FLUX.2-klein-base-4B
    dmd2 sample --workdir=runs/klein --prompt="a red fox in the snow" --out=fox.png

One step: --config.distill.student_steps=1. The 9 B: its folder as pipeline, and a cache by it; its
embeddings are wider. The base models are the teachers; klein without "base" is a student already.

The times are equal parts of 1 to 0 with the shift that diffusers' pipeline has for 50 steps: at
1024 pixels 1, 0.958, 0.883, 0.716. Those of its own call of four steps, which has another shift:
--config.distill.student_times=1,0.9674,0.9081,0.7672 --config.distill.student_steps=0.

Guidance is that of the pipelines, neg + w (pos - neg), 4 by default there and here. Batch, rank,
rates and length are those of sd35_large_lora.py, and were not searched for. Not run here; `dmd2
plan` says what it needs.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config("flux2_klein")
    config.name = "flux2_klein"
    config.data.name = "latents"
    config.data.path = "caches/prompts_klein"

    config.model.pipeline = "klein_4b"
    config.model.resolution = 64  # of latents: 1024 pixels
    config.model.dtype = "bfloat16"
    config.model.remat = "block"
    config.model.scan_layers = True

    config.teacher.objective = "flow"
    config.teacher.sampler_steps = 50

    config.distill.cycles = 2_000
    config.distill.batch_size = 32
    config.distill.critic_turns = 5
    config.distill.student_times = ()
    config.distill.student_steps = 4
    config.distill.guidance = 4.0
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
