"""Stable Diffusion 3 and 3.5, in the latents of a diffusers folder."""

from dmd2_jax.families.sd3.family import PIPELINES, READS, build, open_folder, read
from dmd2_jax.families.sd3.settings import defaults, faults

__all__ = ["PIPELINES", "READS", "build", "defaults", "faults", "open_folder", "read"]
