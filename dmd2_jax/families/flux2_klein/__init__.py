"""FLUX.2-klein, 4 B and 9 B, in the latents of a diffusers folder."""

from dmd2_jax.families.flux2_klein.family import PIPELINES, READS, build, open_folder, read
from dmd2_jax.families.flux2_klein.settings import defaults, faults

__all__ = ["PIPELINES", "READS", "build", "defaults", "faults", "open_folder", "read"]
