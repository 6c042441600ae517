"""The score identity loss: a Fisher divergence whose gradient passes through both networks."""

import jax
import jax.numpy as jnp

from dmd2_jax.losses.distribution_matching import NORMALIZER_FLOOR
from dmd2_jax.typing import Array, Float, expand


def score_identity_loss(
    x_0: Float[Array, "b ..."],
    x_0_teacher: Float[Array, "b ..."],
    x_0_critic: Float[Array, "b ..."],
    *,
    alpha: float = 1.0,
    normalizer_floor: float = NORMALIZER_FLOOR,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return the score identity loss of SiD, in x_0 terms.

        w = 1 / max(mean |x_0 - x_0_teacher|, floor)    (mean per sample, a constant)
        loss = mean w [ (1 - alpha) (T - C)^2 + (T - C) (C - x_0) ],   T teacher's, C critic's

    With alpha = 0 it is the squared distance T - C in two ways of estimating it, summed: the
    second is the same in the mean where C is the mean of x_0 given x_t. alpha near 1 corrects for
    what is lost as C stands still while the samples move.

    Args:
      x_0: [b, ...] the student's samples; carries the gradient.
      x_0_teacher: [b, ...] the teacher's estimate from a noised x_0; carries the gradient.
      x_0_critic: [b, ...] the critic's; carries the gradient to the samples.
      alpha: 0.5 to 1.2; the paper's best are 1.0 and 1.2.
      normalizer_floor: smallest normaliser, > 0, in the units of x_0.

    Returns:
      The scalar loss and metrics: `sid_loss`, `sid_score_errors` ([b], mean (T - C)^2).

    Source: SiD (arXiv 2404.04057) equation 23 and its weight omega(t); its factor of the
      dimension is in the mean.
    """
    sample_axes = tuple(range(1, x_0.ndim))
    # The weight levels the noise levels; it is no part of what is differentiated.
    distance = jnp.mean(jnp.abs(jax.lax.stop_gradient(x_0 - x_0_teacher)), axis=sample_axes)
    weight = expand(1.0 / jnp.maximum(distance, normalizer_floor), x_0)
    difference = x_0_teacher - x_0_critic
    terms = (1.0 - alpha) * jnp.square(difference) + difference * (x_0_critic - x_0)
    loss = jnp.mean(weight * terms)
    return loss, {
        "sid_loss": loss,
        "sid_score_errors": jnp.mean(jnp.square(difference), axis=sample_axes),
    }
