"""Stable Diffusion 1.x, 2.x and XL, in the latents of a diffusers folder."""

from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.families.stable_diffusion.family import (
    PIPELINES,
    READS,
    StableDiffusionFamily,
    build,
    open_folder,
    read,
)
from dmd2_jax.families.stable_diffusion.settings import defaults, faults

__all__ = [
    "CLASSES",
    "PIPELINES",
    "READS",
    "StableDiffusionFamily",
    "build",
    "defaults",
    "faults",
    "open_folder",
    "read",
]
