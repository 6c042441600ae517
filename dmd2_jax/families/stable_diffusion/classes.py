"""The published classes that a pipeline of Stable Diffusion is made of: the U-Net is our own."""

from collections.abc import Mapping

from dmd2_jax.families.published import model
from dmd2_jax.families.published.model import PublishedClass
from dmd2_jax.families.stable_diffusion.unet_config import example_unet_inputs, unet_from_config

__all__ = ["CLASSES", "UNET"]

UNET = "UNet2DConditionModel"

CLASSES: Mapping[str, PublishedClass] = {
    UNET: PublishedClass(unet_from_config, example_unet_inputs, "diffusion_pytorch_model"),
    **model.CLASSES,
}
"""By name, for `PublishedModel.from_config` and `read_component`."""
