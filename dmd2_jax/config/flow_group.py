"""The group of `config.model` that the families of flow transformers share."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dmd2_jax.config.rules import DTYPES, REMAT, SIZES, choice_faults, value_faults

__all__ = ["flow_defaults", "flow_faults"]


def flow_defaults(family: str) -> ConfigDict:
    """Return a family's group: 1024 pixels, and no pipeline.

    Args:
      family: its name.
    """
    model = ConfigDict()
    model.family = family
    model.pipeline = ""  # a diffusers folder, or the name of published shapes
    # A side of the latents, or HEIGHTxWIDTH; 128 are 1024 pixels.
    model.resolution = FieldReference(128, field_type=object)
    model.dtype = "float32"  # compute type: float32 | bfloat16
    model.remat = "none"  # none | block | full: what the backward pass computes again
    model.scan_layers = False  # loop over equal blocks: a small program, copies of the weights
    # Blocks, from 0, whose outputs the GAN head reads; (): the middle and three quarters.
    model.feature_blocks = ()
    return model


def flow_faults(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the values of the group.

    Args:
      model: every key of `flow_defaults`.
    """
    yield from choice_faults(model, {"dtype": DTYPES, "remat": REMAT}, "model.")
    yield from value_faults(model, {SIZES: ("resolution",)}, "model.")
