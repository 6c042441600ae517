"""DiT and SiT: transformers of classes, in pixels or latents, that predict eps or a flow."""

from dmd2_jax.families.sit.family import READS, SitFamily, build, read
from dmd2_jax.families.sit.settings import defaults, faults

__all__ = ["READS", "SitFamily", "build", "defaults", "faults", "read"]
