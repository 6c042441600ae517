"""What the turns report beside their losses: where on the noise scale, and what samples are like.

Nothing here reaches a gradient.
"""

import jax.numpy as jnp

from dmd2_jax.denoiser import Schedule
from dmd2_jax.runtime.summaries import Average, average_by_bin
from dmd2_jax.typing import Array, Float, Int

LEVEL_BINS = 5
"""Bins of the schedule's levels, equal in number of levels, from least to most noisy."""

SATURATED = 0.99
"""|x| above this is saturated: less than 1.3 of 255 grey values from black or white."""


def average_by_level(
    values: Float[Array, " b"], level: Int[Array, " b"], schedule: Schedule
) -> Average:
    """Sum a batch's values in each of the `LEVEL_BINS` bins of the noise levels.

    Args:
      values: [b].
      level: [b] indices into `schedule.levels`.
      schedule: the critic's.

    Returns:
      An Average of shape [LEVEL_BINS].
    """
    return average_by_bin(values, level * LEVEL_BINS // len(schedule.levels), LEVEL_BINS)


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
