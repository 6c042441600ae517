"""The regression loss of the original DMD: the student repeats the teacher's ODE pairs.

DMD2 does without it; it is here for the ablation and for one-step SDXL's initialisation.
"""

from collections.abc import Callable

import jax.numpy as jnp

from dmd2_jax.typing import Array, Float

Distance = Callable[[Array, Array], Array]
"""(a [b, ...], b [b, ...]) -> distance per sample [b]."""

NORM_EPSILON = 1e-10
"""Added to a feature vector's squared length before it is divided by that length."""


def squared_error(a: Float[Array, "b ..."], b: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Return the mean squared difference of each sample, [b], in squared data units."""
    return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))


def feature_distance(features: Callable[[Array], tuple[Array, ...]]) -> Distance:
    """Make an LPIPS-like distance from any feature network.

        d(a, b) = sum over layers of mean over places of |f(a)/|f(a)| - f(b)/|f(b)||^2

    Args:
      features: x [b, h, w, c] -> feature maps, each [b, ..., d]; its parameters are frozen.

    Returns:
      A distance for `regression_loss`.

    Source: LPIPS (arXiv 1801.03924) eq. 1 with unit channel weights.
    """

    def unit(f: Array) -> Array:
        return f / jnp.sqrt(jnp.sum(jnp.square(f), axis=-1, keepdims=True) + NORM_EPSILON)

    def distance(a: Array, b: Array) -> Array:
        total = jnp.zeros(a.shape[0])
        for f_a, f_b in zip(features(a), features(b), strict=True):
            per_place = jnp.sum(jnp.square(unit(f_a) - unit(f_b)), axis=-1)
            total += jnp.mean(per_place.reshape(per_place.shape[0], -1), axis=1)
        return total

    return distance


def regression_loss(
    x_0: Float[Array, "b ..."],
    x_0_target: Float[Array, "b ..."],
    *,
    distance: Distance = squared_error,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return the mean distance between student samples and the teacher's ODE endpoints.

    Args:
      x_0: [b, ...] student samples from the pairs' noise; carries the gradient.
      x_0_target: [b, ...] what the teacher's sampler made of the same noise.
      distance: per-sample distance; `squared_error` or a `feature_distance`.

    Returns:
      The scalar loss and the metric `regression_loss`.

    Source: DMD (arXiv 2311.18828) eq. 9.
    """
    loss = jnp.mean(distance(x_0, x_0_target))
    return loss, {"regression_loss": loss}
