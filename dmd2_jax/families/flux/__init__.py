"""FLUX.1 dev and schnell, in the latents of a diffusers folder."""

from dmd2_jax.families.flux.family import PIPELINES, READS, build, open_folder, read
from dmd2_jax.families.flux.settings import defaults, faults

__all__ = ["PIPELINES", "READS", "build", "defaults", "faults", "open_folder", "read"]
