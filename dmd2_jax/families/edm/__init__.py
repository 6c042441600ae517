"""EDM's U-Nets (ADM, DDPM++, NCSN++), preconditioned, with classes."""

from dmd2_jax.families.edm.family import build

__all__ = ["build"]
