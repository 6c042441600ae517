"""The keys of `config.model` that the family has, and their rules."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dmd2_jax.config.rules import DTYPES, REMAT, SIZES, choice_faults, value_faults

__all__ = ["defaults", "faults"]


def defaults() -> ConfigDict:
    """Return the group: Stable Diffusion 1.5's size, and no pipeline."""
    model = ConfigDict()
    model.family = "stable_diffusion"
    model.pipeline = ""  # a diffusers folder, or sd15 or sdxl for the published shapes
    # A side of the latents, or HEIGHTxWIDTH; 64 of SD 1.5 are 512 pixels.
    model.resolution = FieldReference(64, field_type=object)
    model.dtype = "float32"  # compute type: float32 | bfloat16
    model.remat = "none"  # none | block | full: what the backward pass computes again
    # Loop over the blocks of each transformer. SDXL's program is a fraction as large to compile;
    # each network call copies the transformers' weights.
    model.scan_layers = False
    return model


def faults(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the values of the group.

    Args:
      model: every key of `defaults`.
    """
    yield from choice_faults(model, {"dtype": DTYPES, "remat": REMAT}, "model.")
    yield from value_faults(model, {SIZES: ("resolution",)}, "model.")
