"""EDM's U-Nets (ADM, DDPM++, NCSN++), preconditioned, with classes."""

from dmd2_jax.families.edm.family import EdmFamily, build
from dmd2_jax.families.edm.settings import defaults, faults

__all__ = ["EdmFamily", "build", "defaults", "faults"]
