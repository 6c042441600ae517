"""What published text-to-image networks are conditioned on: the names of the arrays."""

from collections.abc import Mapping

import jax.numpy as jnp

from dmd2_jax.typing import Array

__all__ = ["NEGATIVES", "Condition", "with_negative"]

Condition = Mapping[str, Array]
"""Arrays with a leading batch axis, by their names; families/stable_diffusion has a table."""

NEGATIVES = {"prompt_embeds": "negative_prompt_embeds", "pooled": "negative_pooled"}
"""Part of a condition -> the name of what guidance goes away from in its place."""


def with_negative(cond: Condition, null: Condition) -> dict[str, Array]:
    """Give every sample of a batch one negative prompt, which may be the empty one.

    Args:
      cond: of the batch.
      null: prompt_embeds [1, n, d], and for SDXL pooled [1, p], as a text encoder returns them.

    Returns:
      The condition with the `negative_` parts.
    """
    negative = {
        name: jnp.broadcast_to(null[source], cond[source].shape)
        for source, name in NEGATIVES.items()
        if source in null
    }
    return dict(cond) | negative
