"""Model families: a network with its schedule, prediction type, conditioning and weight names."""

from dmd2_jax.families import edm, stable_diffusion

__all__ = ["edm", "stable_diffusion"]
