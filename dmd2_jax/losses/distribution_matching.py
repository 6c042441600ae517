"""The distribution matching loss: the gradient that moves student samples toward the teacher."""

import jax
import jax.numpy as jnp

from dmd2_jax.typing import Array, Float, expand

NORMALIZER_FLOOR = 1e-8
"""Smallest allowed mean |x_0 - x_0_teacher|. Where it bites, `dm_floor_hits` counts it."""


def distribution_matching_loss(
    x_0: Float[Array, "b ..."],
    x_0_teacher: Float[Array, "b ..."],
    x_0_critic: Float[Array, "b ..."],
    *,
    weight: Float[Array, " b"] | None = None,
    normalizer_floor: float = NORMALIZER_FLOOR,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return a loss whose gradient in x_0 is the normalised score difference.

        g = weight (x_0_critic - x_0_teacher) / max(mean |x_0 - x_0_teacher|, floor)
        (mean per sample)
        loss = 0.5 mean (x_0 - sg(x_0 - g))^2,    so that    d loss / d x_0 = g / x_0.size

    The floor replaces the `nan_to_num` of the official code: 0/0 gives 0 in both, but a score
    difference over a vanishing normaliser stays finite here.

    Args:
      x_0: [b, ...] the student's samples, in [-1, 1] or latent units; carries the gradient.
      x_0_teacher: [b, ...] the teacher's estimate of x_0 from a noised x_0.
      x_0_critic: [b, ...] the critic's estimate from the same noised x_0.
      weight: [b] on each sample's gradient, a constant of this loss; None: 1.
      normalizer_floor: smallest normaliser, > 0, in the units of x_0.

    Returns:
      The scalar loss and metrics: `dm_loss`, `dm_grad_norm` (L2 norm of g over the batch),
      `dm_grad_norms` ([b], of each sample), `dm_normalizer` (its mean), `dm_floor_hits` (how
      many samples met the floor).

    Source: DMD2 (arXiv 2405.14867) eq. 2 with the normaliser of DMD (arXiv 2311.18828) eq. 8,
      without that equation's weights sigma^2 / alpha, which the x_0 form absorbs.
    """
    sample_axes = tuple(range(1, x_0.ndim))
    frozen = jax.lax.stop_gradient(x_0)
    # Neither score network is trained by this loss.
    x_0_teacher, x_0_critic = jax.lax.stop_gradient((x_0_teacher, x_0_critic))
    normalizer = jnp.mean(jnp.abs(frozen - x_0_teacher), axis=sample_axes)
    gradient = (x_0_critic - x_0_teacher) / expand(jnp.maximum(normalizer, normalizer_floor), x_0)
    if weight is not None:
        gradient *= expand(jax.lax.stop_gradient(weight), x_0)
    # The pseudo-target is a constant: the loss pulls x_0 one gradient step toward it.
    target = jax.lax.stop_gradient(frozen - gradient)
    loss = 0.5 * jnp.mean(jnp.square(x_0 - target))
    return loss, {
        "dm_loss": loss,
        "dm_grad_norm": jnp.sqrt(jnp.sum(jnp.square(gradient))),
        "dm_grad_norms": jnp.sqrt(jnp.sum(jnp.square(gradient), axis=sample_axes)),
        "dm_normalizer": jnp.mean(normalizer),
        "dm_floor_hits": jnp.sum(normalizer < normalizer_floor),
    }
