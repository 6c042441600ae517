"""What the turns report beside their losses: where on the noise scale, and what samples are like.

Nothing here reaches a gradient.
"""

import jax.numpy as jnp

from dmd2_jax.distill.objectives.noising import LEVEL_BINS, average_by_level
from dmd2_jax.typing import Array, Float

__all__ = ["LEVEL_BINS", "SATURATED", "average_by_level", "sample_statistics"]

SATURATED = 0.99
"""|x| above this is saturated: less than 1.3 of 255 grey values from black or white."""


def sample_statistics(name: str, x_0: Float[Array, "b ..."]) -> dict[str, Float[Array, ""]]:
    """Return mean, standard deviation and saturation of a batch.

    Args:
      name: what the batch is, in front of the metrics' names.
      x_0: [b, ...] images in [-1, 1], or latents (whose saturation means nothing).

    Returns:
      `NAME_mean`, `NAME_std` (of all values together) and `NAME_saturation` (the share of values
      with |x| > SATURATED).
    """
    x_0 = x_0.astype(jnp.float32)
    return {
        f"{name}_mean": jnp.mean(x_0),
        f"{name}_std": jnp.std(x_0),
        f"{name}_saturation": jnp.mean((jnp.abs(x_0) > SATURATED).astype(jnp.float32)),
    }
