"""Denoising score matching: what trains the critic and the teacher."""

import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Array, Float, expand

WEIGHTINGS = ("edm", "eps", "x0", "flow")


def denoising_weight(
    kind: str,
    alpha: Float[Array, " b"],
    sigma: Float[Array, " b"],
    *,
    sigma_data: float = 0.5,
) -> Float[Array, " b"]:
    """Return the weight on the squared x_0 error at each noise level.

        edm:  sigma^-2 + sigma_data^-2  = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2
        eps:  alpha^2 / sigma^2           which makes it the squared error of eps
        x0:   1
        flow: (alpha + sigma)^2 / sigma^2  which makes it the squared error of eps - x_0

    Args:
      kind: one of `WEIGHTINGS`.
      alpha: [b] signal scale.
      sigma: [b] noise standard deviation in data units, > 0.
      sigma_data: standard deviation of the data (edm only).

    Returns:
      [b] weights.

    Raises:
      ValueError: if `kind` is unknown.

    Source: EDM (arXiv 2206.00364) table 1; DMD2 trains its critic with the same weight.
    """
    if kind == "edm":
        return sigma**-2 + sigma_data**-2
    if kind == "eps":
        return jnp.square(alpha / sigma)
    if kind == "x0":
        return jnp.ones_like(sigma)
    if kind == "flow":
        return jnp.square((alpha + sigma) / sigma)
    raise Refused(f"denoising_weight={kind!r} is unknown; choose one of {WEIGHTINGS}.")


def denoising_loss(
    x_0_prediction: Float[Array, "b ..."],
    x_0: Float[Array, "b ..."],
    *,
    weight: Float[Array, " b"],
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Return mean( weight (x_0_prediction - x_0)^2 ).

    Args:
      x_0_prediction: [b, ...] the network's estimate of x_0 from x_t; carries the gradient.
      x_0: [b, ...] the clean samples, constants of this loss.
      weight: [b] from `denoising_weight`.

    Returns:
      The scalar loss and metrics: `denoising_loss`, `denoising_errors` ([b], each sample's part,
      whose mean is the loss).

    Source: DMD2 (arXiv 2405.14867) eq. 4; EDM (arXiv 2206.00364) eq. 2.
    """
    errors = expand(weight, x_0) * jnp.square(x_0_prediction - x_0)
    loss = jnp.mean(errors)
    return loss, {
        "denoising_loss": loss,
        "denoising_errors": jnp.mean(errors, axis=tuple(range(1, x_0.ndim))),
    }
