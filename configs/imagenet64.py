"""ImageNet 64 x 64, one step, GAN from the start: the paper's first row.

    dmd2 distill --config=configs/imagenet64.py --workdir=runs/imagenet64 \
        --config.data.path=datasets/imagenet-64x64.zip \
        --config.teacher.weights=edm-imagenet-64x64-cond-adm.pkl
    dmd2 evaluate --workdir=runs/imagenet64 --which=student --features=inception \
        --inception_weights=pt_inception-2015-12-05-6726825d.pth --resize=edm \
        --reference=imagenet-64x64.npz

Data: EDM's zip or folder of PNGs with dataset.json (data.name=image_folder), or TFDS
(--config.data.name=tfds:imagenet_resized/64x64 --config.data.path=DATA_DIR), or array_record that
`dmd2 data --write` made of either. Classes count in the order of their synsets, as in NVIDIA's
teacher: EDM's dataset.json has these numbers, and TFDS's others are mapped by the names. Teacher:
NVIDIA's file, or your own from `dmd2 train-teacher --config=configs/imagenet64.py` (EDM's settings,
without its augmentation).

Length: 40,000 cycles = 200,000 critic turns. Published: FID 1.51 (one call; the teacher 2.32 with
511) on 7 A100. Not run here. Arithmetic: 201 GFLOP a network call, 1.8 PFLOP a cycle, 7.3e19 in
all: 20 hours on 8 A100 at 40 % of their peak. The paper's other rows: imagenet64_no_gan.py, then
imagenet64_resume_gan.py.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config()
    config.name = "imagenet64"
    config.data.name = "image_folder"
    config.data.path = "datasets/imagenet-64x64.zip"
    config.data.test_fraction = 0.0

    config.model.resolution = 64
    config.model.image_channels = 3
    config.model.num_classes = 1000
    config.model.model_channels = 192
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_blocks = 3
    config.model.attention_resolutions = (32, 16, 8)
    config.model.dropout = 0.1  # of the teacher's training alone
    config.model.dtype = "bfloat16"

    config.teacher.steps = 610_000
    config.teacher.batch_size = 4096
    config.teacher.lr = 1e-4
    config.teacher.warmup = 2_441
    config.teacher.ema_decay = 0.99994
    config.teacher.sampler_steps = 256

    config.distill.cycles = 40_000
    config.distill.batch_size = 280
    config.distill.gan_head_channels = 768

    config.log.every = 100
    config.log.grid_every = 1000
    config.log.export_every = 1000
    config.log.teacher_grid_every = 2000
    config.log.teacher_export_every = 2000
    config.log.checkpoint_every = 1000
    config.evaluate.num_samples = 50_000
    return config
