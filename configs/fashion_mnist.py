"""Fashion-MNIST, 28 x 28 padded to 32 x 32.

    dmd2 train-teacher --config=configs/fashion_mnist.py --workdir=runs/fashion_teacher \
        --config.data.path=/usr/share/datasets/fashion-mnist
    dmd2 distill --config=configs/fashion_mnist.py --workdir=runs/fashion_student \
        --config.data.path=/usr/share/datasets/fashion-mnist \
        --config.teacher.weights=runs/fashion_teacher
    dmd2 evaluate --workdir=runs/fashion_student

Data: the four IDX files, for example of the Debian package dataset-fashion-mnist. Meant for one
GPU or TPU chip, and not run here; two CPU cores need days: fashion_mnist_small.py is for them.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config()
    config.name = "fashion_mnist"
    config.data.name = "fashion_mnist"
    config.data.path = "/usr/share/datasets/fashion-mnist"

    config.model.resolution = 32
    config.model.image_channels = 1
    config.model.num_classes = 10
    config.model.model_channels = 64
    config.model.channel_mult = (1, 2, 2)
    config.model.num_blocks = 2
    config.model.attention_resolutions = (8,)

    config.teacher.steps = 50_000
    config.teacher.lr = 5e-4
    config.teacher.warmup = 1000
    config.teacher.ema_decay = 0.9995

    config.distill.cycles = 10_000
    config.optim.generator_lr = 1e-5
    config.optim.critic_lr = 1e-5

    config.log.every = 50
    config.log.grid_every = 1000
    config.log.export_every = 1000
    config.log.teacher_grid_every = 2000
    config.log.teacher_export_every = 2000
    config.log.checkpoint_every = 1000
    config.evaluate.num_samples = 10_000
    return config
