"""ImageNet 256 x 256, one step, from SiT-XL/2 in the latents of Stable Diffusion's autoencoder.

    dmd2 distill --config=configs/sit_xl_imagenet256.py --workdir=runs/sit_xl \
        --config.teacher.weights=SiT-XL-2-256.pt --config.data.path=imagenet256_latents \
        --config.model.vae=sd-vae-ft-ema
    dmd2 evaluate --workdir=runs/sit_xl --which=student --features=inception \
        --inception_weights=pt_inception-2015-12-05.pth --reference=imagenet/ --num=50000

Teacher: a file of SiT's or REPA's SiT (EMA weights). Those of SiT have twice the channels
(model.learned_variance=True); of a file with as many as the latents, set it to False: loading says
so. Data: class_latents, latents with class numbers as EDM2's and REPA's tools write them, or
config.data.name=latents of `dmd2 cache --vae=sd-vae-ft-ema` (docs/data.md). Without a GAN no
example of them is trained on; they say how many classes there are.

Length: 4,000 cycles = 20,000 critic turns, for which DMDR's 20,000 iterations are taken. Published
(DMDR, arXiv 2511.13649; REPA's SiT-XL/2, without guidance and reward): FID 2.13, recall 0.64, batch
512, rates 2e-5, K = 5, critic's times logit-normal. Not run here, and not loaded from a published
file. Your own teacher: dmd2 train-teacher --config=configs/sit_xl_imagenet256.py.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config("sit")
    config.name = "sit_xl_imagenet256"
    config.data.name = "class_latents"
    config.data.path = "imagenet256_latents"
    config.data.test_fraction = 0.0

    config.model.resolution = 32  # of latents: 256 pixels
    config.model.image_channels = 4
    config.model.num_classes = 1000
    config.model.width = 1152
    config.model.depth = 28
    config.model.heads = 16
    config.model.data_time = 1
    config.model.time_scale = 1.0
    config.model.learned_variance = True
    config.model.dtype = "bfloat16"
    config.model.remat = "block"
    config.model.scan_layers = True

    config.teacher.objective = "flow"
    config.teacher.p_mean = 0.0
    config.teacher.p_std = 1.0
    config.teacher.steps = 400_000
    config.teacher.batch_size = 256
    config.teacher.lr = 1e-4
    config.teacher.ema_decay = 0.9999
    config.teacher.label_dropout = 0.1
    config.teacher.sampler_steps = 125

    config.distill.cycles = 4_000
    config.distill.batch_size = 512
    config.distill.critic_turns = 5
    config.distill.student_times = (1.0,)
    config.distill.denoising_weight = "flow"
    config.distill.critic_times = "logit_normal:0:1"
    config.distill.gan_generator_weight = None
    config.distill.gan_critic_weight = None

    config.optim.generator_lr = 2e-5
    config.optim.critic_lr = 2e-5

    config.log.every = 100
    config.log.grid_every = 500
    config.log.export_every = 1000
    config.log.checkpoint_every = 500
    config.log.teacher_grid_every = 2000
    config.log.teacher_export_every = 2000
    return config
