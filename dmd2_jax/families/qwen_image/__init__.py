"""Qwen-Image, in the latents of a diffusers folder."""

from dmd2_jax.families.qwen_image.family import PIPELINES, READS, build, open_folder, read
from dmd2_jax.families.qwen_image.settings import defaults, faults

__all__ = ["PIPELINES", "READS", "build", "defaults", "faults", "open_folder", "read"]
