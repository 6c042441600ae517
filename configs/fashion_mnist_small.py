"""Fashion-MNIST, 28 x 28, at a size that two CPU cores finish within two hours."""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    """Return the config."""
    config = digits.get_config()
    config.name = "fashion_mnist_small"
    config.data.name = "fashion_mnist"
    config.data.path = "/usr/share/datasets/fashion-mnist"
    config.data.resolution = 28

    config.model.resolution = 28
    config.model.model_channels = 16
    config.model.channel_mult = (1, 2, 4)
    config.model.attention_resolutions = (7,)

    config.teacher.steps = 1500
    config.teacher.warmup = 100
    config.teacher.ema_decay = 0.998

    config.distill.cycles = 400
    config.log.every = 10
    config.log.grid_every = 100
    config.log.checkpoint_every = 100
    config.evaluate.num_samples = 2000
    return config
