"""Array aliases and the one helper that broadcasts per-sample scalars.

Axis letters: b batch, h w c height width channel, k critic turns, s student steps,
n tokens or levels, d features. Images are NHWC in [-1, 1].
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

__all__ = ["Array", "DType", "Float", "Int", "Key", "Params", "PyTree", "Shaped", "expand"]

PyTree = Any
"""Any nest of arrays that `jax.tree` can walk."""

Params = PyTree
"""A network's parameters."""

DType = jax.typing.DTypeLike
"""The type of an array's numbers, such as jnp.float32, which releases of JAX class differently."""

Key = PRNGKeyArray | jax.Array
"""A random key: `jax.random.key(seed)` (typed) or `jax.random.PRNGKey(seed)`."""


def expand(per_sample: Shaped[Array, " b"], like: Shaped[Array, "b ..."]) -> Array:
    """Append singleton axes to `per_sample` until it broadcasts against `like`.

    Args:
      per_sample: [b], one scalar a sample.
      like: [b, ...], the array it will be combined with.

    Returns:
      [b, 1, ..., 1] with `like.ndim` axes.

    Raises:
      ValueError: if `per_sample` is not one number a sample of `like`.
    """
    per_sample = jnp.asarray(per_sample)
    if per_sample.shape != like.shape[:1]:
        raise ValueError(  # a fault of the program: no user gives these arrays
            f"per-sample scalars have shape {per_sample.shape}, expected [b] = {like.shape[:1]} "
            f"for an array of shape {like.shape}; pass one number a sample."
        )
    return per_sample.reshape(per_sample.shape + (1,) * (like.ndim - 1))
