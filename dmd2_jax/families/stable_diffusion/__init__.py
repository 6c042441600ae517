"""Stable Diffusion 1.5 and SDXL, in the latents of a diffusers folder."""

from dmd2_jax.families.stable_diffusion.family import PIPELINES, build, open_folder

__all__ = ["PIPELINES", "build", "open_folder"]
