"""Qwen-Image in four steps, from prompts alone: the generator is a LoRA, the critic is whole.

    dmd2 verify --pipeline=Qwen-Image
    dmd2 cache --pipeline=Qwen-Image --prompts=prompts.txt --out=caches/prompts_qwen_image
    dmd2 distill --config=configs/qwen_image.py --workdir=runs/qwen_image \
        --config.model.pipeline=Qwen-Image
    dmd2 sample --workdir=runs/qwen_image --prompt="a red fox in the snow" --out=fox.png

No GAN, rates of 5e-5 and, of a whole critic, 4e-7, Adam's b1 0, no warm-up, clipping at 1, some
2,000 turns of the generator: as the authors of Qwen-Image-Lightning told of theirs (issue 64 of
their repository). Their student's times are equal parts of 1 to 0 with shift 3, which is not the
teacher's.

The guidance is the pipeline's own, `true_cfg_scale`, and 4 its default. Batch and rank are those of
sd35_large_lora.py, and were not searched for. Not run here; `dmd2 plan` says what it needs. Where a
whole critic of 20 B is too large: --config.distill.lora_critic=True, with a rate such as
--config.optim.critic_lr=5e-5, which was not tried.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config("qwen_image")
    config.name = "qwen_image"
    config.data.name = "latents"
    config.data.path = "caches/prompts_qwen_image"

    config.model.pipeline = "qwen_image"
    config.model.resolution = 128  # of latents: 1024 pixels
    config.model.dtype = "bfloat16"
    config.model.remat = "block"
    config.model.scan_layers = True

    config.teacher.objective = "flow"
    config.teacher.sampler_steps = 50

    config.distill.cycles = 2_000
    config.distill.batch_size = 32
    config.distill.critic_turns = 5
    config.distill.student_times = (1.0, 0.9, 0.75, 0.5)
    config.distill.guidance = 4.0
    config.distill.denoising_weight = "flow"
    config.distill.critic_times = "logit_normal:0:1"
    config.distill.gan_generator_weight = None
    config.distill.gan_critic_weight = None
    config.distill.lora_rank = 32
    config.distill.lora_alpha = 32.0

    config.optim.generator_lr = 5e-5
    config.optim.critic_lr = 4e-7
    config.optim.b1 = 0.0
    config.optim.warmup = 0
    config.optim.clip_norm = 1.0
    config.optim.ema_decays = ()

    config.log.grid_every = 500
    config.log.export_every = 500
    config.log.checkpoint_every = 100
    config.evaluate.batch_size = 4
    return config
