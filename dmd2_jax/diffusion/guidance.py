"""Classifier-free guidance, in the convention u + w (c - u).

w = 0 is the unconditional prediction, w = 1 the conditional one (no guidance), w > 1 extrapolates.
Papers that write c + w (c - u) mean our w + 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.typing import Array, Float, Params, PyTree, expand

__all__ = ["both_x0", "guide", "guided_x0"]

Scale = float | int | np.generic | Float[Array, ""] | Float[Array, " b"]
"""A guidance scale w: one number, or one a sample."""


def guide(
    x_0_cond: Float[Array, "b ..."],
    x_0_uncond: Float[Array, "b ..."],
    w: Scale,
) -> Float[Array, "b ..."]:
    """Extrapolate from the unconditional to the conditional prediction.

    x_0 = u + w (c - u).

    Args:
      x_0_cond: c [b, ...], conditional prediction.
      x_0_uncond: u [b, ...], unconditional prediction.
      w: guidance scale, one number or one a sample [b]; 1 is c itself.

    Returns:
      Guided x_0 [b, ...].

    Raises:
      ValueError: if w is neither one number nor one a sample.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), equation 6, with w = 1 + their w.
    """
    w = jnp.asarray(w, dtype=jnp.float32)
    if w.ndim:
        w = expand(w, x_0_cond)
    return x_0_uncond + w * (x_0_cond - x_0_uncond)


def guided_x0(
    denoiser: Denoiser, w: Scale | None
) -> Callable[[Params, Array, Array, PyTree], Array]:
    """Wrap a denoiser's x0 with guidance, one pass over a doubled batch.

    x_0 = u + w (c - u), u from `denoiser.null_cond(cond)`.

    Args:
      denoiser: the model; its null_cond gives the unconditional condition.
      w: guidance scale, one number or one a sample [b]. None and the number 1 mean no guidance.

    Returns:
      (params, x_t [b, ...], t [b], cond) -> x_0 [b, ...]; for no guidance `denoiser.x0` itself,
      which runs no second pass. The returned function raises a ValueError if cond is None.

    Source: Ho & Salimans 2022 (arXiv 2207.12598), equation 6, with w = 1 + their w.
    """
    if w is None or (isinstance(w, int | float | np.generic) and w == 1):
        return denoiser.x0

    both = both_x0(denoiser)

    def x0(params: Params, x_t: Array, t: Array, cond: PyTree) -> Array:
        if not jax.tree.leaves(cond):
            raise Refused(
                f"guidance w={w} got no condition, expected a cond with a batch axis; "
                "pass cond, or w=None for an unconditional model."
            )
        return guide(*both(params, x_t, t, cond), w)

    return x0


def both_x0(
    denoiser: Denoiser,
) -> Callable[[Params, Array, Array, PyTree], tuple[Array, Array]]:
    """Return what gives a denoiser's conditional and unconditional x_0, from one doubled batch.

    Args:
      denoiser: the model; its null_cond gives the unconditional condition.

    Returns:
      (params, x_t [b, ...], t [b], cond) -> (c, u), each [b, ...].
    """

    def x0(params: Params, x_t: Array, t: Array, cond: PyTree) -> tuple[Array, Array]:
        both_cond = jax.tree.map(_interleave, denoiser.null_cond(cond), cond)
        both = denoiser.x0(params, _interleave(x_t, x_t), _interleave(t, t), both_cond)
        pairs = both.reshape((-1, 2, *both.shape[1:]))
        return pairs[:, 1], pairs[:, 0]

    return x0


def _interleave(first: Array, second: Array) -> Array:
    """[b, ...] twice -> [2 b, ...], each sample's pair adjacent.

    Concatenating the halves would move half of a batch-sharded array to other devices.
    """
    pairs = jnp.stack([jnp.asarray(first), jnp.asarray(second)], axis=1)
    return pairs.reshape((-1, *pairs.shape[2:]))
