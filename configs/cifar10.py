"""CIFAR-10, class-conditional, one step, from EDM's VP teacher (DDPM++).

    dmd2 distill --config=configs/cifar10.py --workdir=runs/cifar10 \
        --config.data.path=datasets/cifar10-32x32.zip \
        --config.teacher.weights=edm-cifar10-32x32-cond-vp.pkl
    dmd2 evaluate --workdir=runs/cifar10 --which=student --features=inception \
        --inception_weights=pt_inception-2015-12-05-6726825d.pth --resize=edm \
        --reference=cifar10-32x32.npz

Data: EDM's zip or folder of PNGs with dataset.json (data.name=image_folder), or TFDS
(--config.data.name=tfds:cifar10 --config.data.path=DATA_DIR). Teacher: NVIDIA's file, or your own
from `dmd2 train-teacher --config=configs/cifar10.py` (EDM's settings, without its augmentation).
cifar10_ve.py takes the VE teacher (NCSN++).

Length: 20,000 cycles = 100,000 critic turns of batch 2048. Published for these settings (NVIDIA
FastGen, PyTorch; the DMD2 paper has no CIFAR-10): FID 1.99; the teacher's is 1.79 with 35 calls.
Not run here. Arithmetic: 40 GFLOP a network call, 2.8 PFLOP a cycle, 5.7e19 in all: 16 hours on
8 A100 in bfloat16 at 40 % of their peak.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config()
    config.name = "cifar10"
    config.data.name = "image_folder"
    config.data.path = "datasets/cifar10-32x32.zip"
    config.data.test_fraction = 0.0

    config.model.network = "song"
    config.model.resolution = 32
    config.model.image_channels = 3
    config.model.num_classes = 10
    config.model.model_channels = 128
    config.model.channel_mult = (2, 2, 2)
    config.model.num_blocks = 4
    config.model.attention_resolutions = (16,)
    config.model.augment_dim = 9
    config.model.dropout = 0.13  # of the teacher's training alone
    config.model.dtype = "bfloat16"

    config.teacher.steps = 390_000
    config.teacher.batch_size = 512
    config.teacher.lr = 1e-3
    config.teacher.warmup = 19_531
    config.teacher.ema_decay = 0.9993
    config.teacher.sampler_steps = 18

    config.distill.cycles = 20_000
    config.distill.batch_size = 2048
    config.distill.gan_generator_weight = 1e-3

    config.optim.generator_lr = 1e-4
    config.optim.critic_lr = 1e-4
    config.optim.ema_decays = (0.999, 0.9999)

    config.log.every = 50
    config.log.grid_every = 500
    config.log.export_every = 500
    config.log.teacher_grid_every = 2000
    config.log.teacher_export_every = 2000
    config.log.checkpoint_every = 500
    config.evaluate.num_samples = 50_000
    return config
