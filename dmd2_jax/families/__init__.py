"""Model families: a network with its schedule, prediction type, conditioning and weight names."""

from dmd2_jax.families import (
    edm,
    flux,
    flux2_klein,
    qwen_image,
    sd3,
    sit,
    stable_diffusion,
    z_image,
)
from dmd2_jax.families.published.opening import read

__all__ = [
    "edm",
    "flux",
    "flux2_klein",
    "qwen_image",
    "read",
    "sd3",
    "sit",
    "stable_diffusion",
    "z_image",
]
