"""Stable Diffusion 1.x, 2.x and XL, in the latents of a diffusers folder."""

from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.families.stable_diffusion.family import (
    StableDiffusionFamily,
    build,
    read,
    with_negative,
)
from dmd2_jax.families.stable_diffusion.settings import defaults, faults

__all__ = [
    "CLASSES",
    "StableDiffusionFamily",
    "build",
    "defaults",
    "faults",
    "read",
    "with_negative",
]
