"""The size at which cycles are compared: a small ADM U-Net at ImageNet-64's resolution.

32 channels, multipliers 1, 2, 3, 4, one block a level, 64x64x3, 1000 classes, batch 4, K = 5,
float32: large enough that convolutions dominate, small enough for two CPU cores.
"""

from ml_collections import ConfigDict

from dmd2_jax.config import defaults


def get_config() -> ConfigDict:
    """Return the config."""
    config = defaults.get_config()
    config.name = "reference_point"
    config.model.resolution = 64
    config.model.image_channels = 3
    config.model.num_classes = 1000
    config.model.model_channels = 32
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_blocks = 1
    config.model.attention_resolutions = (32, 16, 8)
    config.distill.batch_size = 4
    config.distill.gan_head_channels = 128
    config.optim.ema_decays = ()
    return config
