"""The keys of `config.model` that the family has, and their rules."""

from ml_collections import ConfigDict

from dmd2_jax.config.flow_group import flow_defaults
from dmd2_jax.config.flow_group import flow_faults as faults

__all__ = ["defaults", "faults"]


def defaults() -> ConfigDict:
    """Return the group: 1024 pixels, and no pipeline."""
    model = flow_defaults("qwen_image")
    # A diffusers folder, or qwen_image for the published shapes.
    model.pipeline = ""
    return model
