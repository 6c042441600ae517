"""What the latents of an autoencoder are shifted and scaled by, beside its weights."""

from pathlib import Path
from typing import Any

import numpy as np

from dmd2_jax.families.published.folder import read_component_config
from dmd2_jax.families.published.model import PublishedModel

__all__ = ["latents_scale", "pipeline_latents_scale"]

_NAMES = ("scaling_factor", "shift_factor", "mean", "std")  # as autoencoders' attributes


def latents_scale(vae: Any) -> dict[str, Any]:
    """Return the numbers that an autoencoder's config says, by name, with its class.

    Args:
      vae: the network.
    """
    named = {name: getattr(vae, name, None) for name in _NAMES}
    found = {name: np.asarray(it).tolist() for name, it in named.items() if it is not None}
    return {"class": type(vae).__name__} | found


def pipeline_latents_scale(folder: Path) -> dict[str, Any]:
    """Return the same of a pipeline's autoencoder, reading no weights; {}: it has none.

    Args:
      folder: of the pipeline, or of a network alone.

    Raises:
      ValueError: if its autoencoder's config is refused.
    """
    own = folder / "vae"
    if not own.is_dir():
        return {}
    return latents_scale(PublishedModel.from_config(read_component_config(own)).module)
