"""The keys of `config.model` that the family has, and their rules."""

from ml_collections import ConfigDict

from dmd2_jax.config.flow_group import flow_defaults
from dmd2_jax.config.flow_group import flow_faults as faults

__all__ = ["defaults", "faults"]


def defaults() -> ConfigDict:
    """Return the group: 1024 pixels, and no pipeline."""
    model = flow_defaults("flux2_klein")
    # A diffusers folder, or klein_4b or klein_9b for the published shapes.
    model.pipeline = ""
    # A side of the latents, or HEIGHTxWIDTH; one is 16 pixels, so 64 are 1024.
    model.resolution = 64
    return model
