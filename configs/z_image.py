"""Z-Image in four steps, by decoupled distribution matching, as a LoRA: one copy of the network.

    dmd2 verify --pipeline=Z-Image
    dmd2 cache --pipeline=Z-Image --prompts=prompts.txt --out=caches/prompts_z_image
    dmd2 distill --config=configs/z_image.py --workdir=runs/z_image \
        --config.model.pipeline=Z-Image
    dmd2 sample --workdir=runs/z_image --prompt="a red fox in the snow" --out=fox.png

Eight steps, as Z-Image-Turbo has them: --config.distill.student_steps=8. The times are equal parts
of 1 to 0 with the shift of the pipeline's scheduler; with 3, four are 1, 0.9, 0.75, 0.5.

Guidance is an objective of its own (Decoupled DMD, arXiv 2511.22677, by the makers of
Z-Image-Turbo), so distill.guidance stays None. Its w is ours, neg + w (pos - neg): 5 here is
guidance_scale=4 of diffusers' ZImagePipeline, pos + w (pos - neg). Add 1 to a scale from there.
Whole networks: --config.distill.lora_rank=0 --config.distill.lora_critic=False, with rates such as
1e-6.

Batch, rank, rates and length are those of sd35_large_lora.py, and were not searched for. Not run
here; `dmd2 plan` says what it needs.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config("z_image")
    config.name = "z_image"
    config.data.name = "latents"
    config.data.path = "caches/prompts_z_image"

    config.model.pipeline = "z_image"
    config.model.resolution = 128  # of latents: 1024 pixels
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
    config.distill.objectives = ("guidance_augmentation:guidance=5",)
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
