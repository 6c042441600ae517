"""Classifier-free guidance, in the convention u + w (c - u).

w = 0 is the unconditional prediction, w = 1 the conditional one (no guidance), w > 1 extrapolates.
Papers that write c + w (c - u) mean our w + 1. A model that was published with another rule has it
as `Denoiser.guide`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.typing import Array, Float, Params, PyTree, expand

__all__ = ["Guided", "Scale", "both_x0", "guide", "guided_by_cond", "guided_x0", "told_scale"]

Scale = float | int | np.generic | Float[Array, ""] | Float[Array, " b"]
"""A guidance scale w: one number, or one a sample."""

Tell = Callable[[Params, PyTree, Array], tuple[Params, PyTree]]
"""(params, cond, w [b]) -> what a denoiser takes to be told w."""


class Guided(NamedTuple):
    """A condition together with the guidance scale that goes with it, which is one too.

    Attributes:
      cond: the condition, leading axis b, or None.
      scale: w [b].
    """

    cond: PyTree
    scale: Float[Array, " b"]


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

    x_0 = u + w (c - u), u from `denoiser.null_cond(cond)`; or what `denoiser.guide` makes of both.

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
        c, u = both(params, x_t, t, cond)
        return guide(c, u, w) if denoiser.guide is None else denoiser.guide(c, u, w, x_t)

    return x0


def guided_by_cond(denoiser: Denoiser) -> Denoiser:
    """Return the teacher whose conditions are `Guided`: its x0 is u + w (c - u), w of each sample.

    Its features are those of the condition alone.

    Args:
      denoiser: the model.
    """

    def x0(params: Params, x_t: Array, t: Array, cond: Guided) -> Array:
        return guided_x0(denoiser, cond.scale)(params, x_t, t, cond.cond)

    def features(params: Params, x_t: Array, t: Array, cond: Guided) -> tuple[Array, ...]:
        return denoiser.features(params, x_t, t, cond.cond)

    def both(params: Params, x_t: Array, t: Array, cond: Guided) -> tuple[Array, tuple[Array, ...]]:
        return x0(params, x_t, t, cond), features(params, x_t, t, cond)

    return denoiser._replace(
        x0=x0, features=features, x0_and_features=both, null_cond=_null(denoiser)
    )


def told_scale(denoiser: Denoiser, tell: Tell) -> Denoiser:
    """Return the network whose conditions are `Guided`: it is told w, and called once.

    Args:
      denoiser: the network.
      tell: how.
    """

    def x0(params: Params, x_t: Array, t: Array, cond: Guided) -> Array:
        params, own = tell(params, *cond)
        return denoiser.x0(params, x_t, t, own)

    def features(params: Params, x_t: Array, t: Array, cond: Guided) -> tuple[Array, ...]:
        params, own = tell(params, *cond)
        return denoiser.features(params, x_t, t, own)

    def both(params: Params, x_t: Array, t: Array, cond: Guided) -> tuple[Array, tuple[Array, ...]]:
        params, own = tell(params, *cond)
        return denoiser.x0_and_features(params, x_t, t, own)

    return denoiser._replace(
        x0=x0, features=features, x0_and_features=both, null_cond=_null(denoiser)
    )


def _null(denoiser: Denoiser) -> Callable[[Guided], Guided]:
    return lambda cond: cond._replace(cond=denoiser.null_cond(cond.cond))


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
