"""The keys of `config.model` that the family has, and their rules."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from dmd2_jax.config.flow_group import flow_defaults, flow_faults
from dmd2_jax.config.rules import NOT_NEGATIVE, number_faults

__all__ = ["defaults", "faults"]


def defaults() -> ConfigDict:
    """Return the group: 1024 pixels, and no pipeline."""
    model = flow_defaults("flux")
    # A diffusers folder, or flux_dev or flux_schnell for the published shapes.
    model.pipeline = ""
    model.guidance = 3.5  # of FLUX.1-dev, an input of the network where a condition has none
    return model


def faults(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the values of the group.

    Args:
      model: every key of `defaults`.
    """
    yield from flow_faults(model)
    yield from number_faults(model, {NOT_NEGATIVE: ("guidance",)}, "model.")
