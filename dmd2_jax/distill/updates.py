"""What an optimiser step is made of, for the distillation's players and for a teacher alike."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from dmd2_jax.typing import Array, Float, Params, PyTree

__all__ = ["cosine", "moving_average", "ramped_decay", "taken_if"]


def cosine(progress: Float[Array, ""]) -> Float[Array, ""]:
    """Return the rate's factor 0.5 (1 + cos(pi progress)): 1 at 0, and 0 from 1 on.

    Args:
      progress: [] the part of the schedule that is over; it is clipped to [0, 1].
    """
    return 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))


def ramped_decay(decay: float, n: Float[Array, ""]) -> Float[Array, ""]:
    """Return min(decay, (1 + n) / (10 + n)): so short runs are no averages of how they began.

    Args:
      decay: of the average in the long run, in [0, 1).
      n: [] updates averaged before this one.
    """
    return jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def moving_average(average: Params, params: Params, decay: float | Float[Array, ""]) -> Params:
    """Return decay average + (1 - decay) params.

    Args:
      average: so far.
      params: the newest.
      decay: in [0, 1).
    """
    return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)


def taken_if(finite: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Return `new`, or all of `old` where the step's gradient was not finite.

    Args:
      finite: [] whether it was.
      new: after the step.
      old: before it.
    """
    return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
