"""Prediction types: what a network predicts, turned into the clean sample x_0 and back.

With x_t = alpha x_0 + sigma eps (any alpha and sigma, not only alpha^2 + sigma^2 = 1):

| kind   | network predicts      | x_0                                          |
|--------|-----------------------|----------------------------------------------|
| "eps"  | eps                   | (x_t - sigma eps) / alpha                    |
| "v"    | alpha eps - sigma x_0 | (alpha x_t - sigma v) / (alpha^2 + sigma^2)  |
| "flow" | eps - x_0             | (x_t - sigma flow) / (alpha + sigma)         |
| "x0"   | x_0                   | x_0                                          |

Conditioning. An error e in the prediction becomes, in x_0, (sigma / alpha) e for "eps": 15 e at
the last time of Stable Diffusion, where alpha = 0.068, and without bound where alpha = 0, so that
"eps" cannot be used at t = 1 of a rectified flow. For "v" and "flow" it is at most e. The way back
divides by sigma, which is positive at every level of every schedule: an error e in x_0 becomes
(alpha / sigma) e for "eps", 500 e at EDM's sigma = 0.002.
"""

import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Array, Float, expand

__all__ = ["KINDS", "check_kind", "edm_from_x0", "edm_scalings", "edm_to_x0", "from_x0", "to_x0"]

KINDS = ("eps", "v", "flow", "x0")
"""The prediction types that `to_x0` and `from_x0` know."""


def to_x0(
    kind: str,
    prediction: Float[Array, "b ..."],
    x_t: Float[Array, "b ..."],
    alpha: Float[Array, " b"],
    sigma: Float[Array, " b"],
) -> Float[Array, "b ..."]:
    """Convert a network's prediction to the clean sample (equations in the module's table).

    Args:
      kind: "eps", "v", "flow" or "x0".
      prediction: [b, ...], the network's raw output.
      x_t: [b, ...], the noised sample it was made from.
      alpha: [b], signal scale; for "eps" it must be > 0.
      sigma: [b], noise standard deviation, data units.

    Returns:
      x_0 [b, ...], at least float32.

    Raises:
      ValueError: if the kind is unknown or the scalars are not one a sample.

    Source: Ho et al. 2020 (arXiv 2006.11239) for eps; Salimans & Ho 2022 (arXiv 2202.00512),
      appendix D, for v; Liu et al. 2022 (arXiv 2209.03003) for flow.
    """
    check_kind(kind)
    prediction, x_t, alpha, sigma = _broadcast(prediction, x_t, alpha, sigma)
    if kind == "eps":
        return (x_t - sigma * prediction) / alpha
    if kind == "v":
        return (alpha * x_t - sigma * prediction) / (alpha**2 + sigma**2)
    if kind == "flow":
        return (x_t - sigma * prediction) / (alpha + sigma)
    return prediction


def from_x0(
    kind: str,
    x_0: Float[Array, "b ..."],
    x_t: Float[Array, "b ..."],
    alpha: Float[Array, " b"],
    sigma: Float[Array, " b"],
) -> Float[Array, "b ..."]:
    """Convert a clean sample to the prediction a network would have made (inverse of `to_x0`).

    Args:
      kind: "eps", "v", "flow" or "x0".
      x_0: [b, ...], clean sample, data units.
      x_t: [b, ...], the noised sample.
      alpha: [b], signal scale.
      sigma: [b], noise standard deviation, data units, > 0.

    Returns:
      The prediction [b, ...], at least float32.

    Raises:
      ValueError: if the kind is unknown or the scalars are not one a sample.

    Source: as `to_x0`.
    """
    check_kind(kind)
    x_0, x_t, alpha, sigma = _broadcast(x_0, x_t, alpha, sigma)
    if kind == "x0":
        return x_0
    eps = (x_t - alpha * x_0) / sigma
    if kind == "eps":
        return eps
    if kind == "v":
        return alpha * eps - sigma * x_0
    return eps - x_0


def edm_scalings(
    sigma: Float[Array, " b"], sigma_data: float | int
) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, " b"], Float[Array, " b"]]:
    """Compute the four scalings of EDM's preconditioning.

    c_skip = sd^2 / (sigma^2 + sd^2), c_out = sigma sd / sqrt(sigma^2 + sd^2),
    c_in = 1 / sqrt(sigma^2 + sd^2), c_noise = ln(sigma) / 4.

    Args:
      sigma: [b], noise standard deviation, data units, > 0.
      sigma_data: sd, standard deviation of the data, > 0.

    Returns:
      (c_skip, c_out, c_in, c_noise), each [b], at least float32.

    Source: Karras et al. 2022 (arXiv 2206.00364), table 1.
    """
    sigma = _at_least_float32(sigma)
    variance = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / variance
    c_out = sigma * sigma_data / jnp.sqrt(variance)
    c_in = 1.0 / jnp.sqrt(variance)
    return c_skip, c_out, c_in, jnp.log(sigma) / 4.0


def edm_to_x0(
    prediction: Float[Array, "b ..."],
    x_t: Float[Array, "b ..."],
    sigma: Float[Array, " b"],
    sigma_data: float | int,
) -> Float[Array, "b ..."]:
    """Convert the inner network's output F of an EDM-preconditioned model to x_0.

    x_0 = c_skip(sigma) x_t + c_out(sigma) F.

    Args:
      prediction: F [b, ...], the inner network's output for the input c_in x_t.
      x_t: [b, ...], the noised sample, x_0 + sigma eps.
      sigma: [b], noise standard deviation, data units, > 0.
      sigma_data: standard deviation of the data, > 0.

    Returns:
      x_0 [b, ...], at least float32.

    Raises:
      ValueError: if sigma is not one number a sample.

    Source: Karras et al. 2022 (arXiv 2206.00364), equation 7.
    """
    c_skip, c_out, _, _ = edm_scalings(sigma, sigma_data)
    prediction, x_t, c_skip, c_out = _broadcast(prediction, x_t, c_skip, c_out)
    return c_skip * x_t + c_out * prediction


def edm_from_x0(
    x_0: Float[Array, "b ..."],
    x_t: Float[Array, "b ..."],
    sigma: Float[Array, " b"],
    sigma_data: float | int,
) -> Float[Array, "b ..."]:
    """Convert x_0 to the inner network's output F (inverse of `edm_to_x0`).

    F = (x_0 - c_skip(sigma) x_t) / c_out(sigma); at small sigma an error e in x_0 becomes
    e / sigma in F.

    Args:
      x_0: [b, ...], clean sample, data units.
      x_t: [b, ...], the noised sample.
      sigma: [b], noise standard deviation, data units, > 0.
      sigma_data: standard deviation of the data, > 0.

    Returns:
      F [b, ...], at least float32.

    Raises:
      ValueError: if sigma is not one number a sample.

    Source: Karras et al. 2022 (arXiv 2206.00364), equation 8.
    """
    c_skip, c_out, _, _ = edm_scalings(sigma, sigma_data)
    x_0, x_t, c_skip, c_out = _broadcast(x_0, x_t, c_skip, c_out)
    return (x_0 - c_skip * x_t) / c_out


def check_kind(kind: str) -> None:
    """Raise a ValueError unless `kind` is one of `KINDS`."""
    if kind not in KINDS:
        raise Refused(
            f"prediction kind {kind!r} must be one of {KINDS}; "
            "EDM-preconditioned networks use edm_to_x0 and edm_from_x0."
        )


def _at_least_float32(x: Array) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _broadcast(value: Array, x_t: Array, first: Array, second: Array) -> tuple[Array, ...]:
    """Lift all four to at least float32 and give the per-sample scalars x_t's axes."""
    value, x_t, first, second = map(_at_least_float32, (value, x_t, first, second))
    return value, x_t, expand(first, x_t), expand(second, x_t)
