"""The one contract: everything that can be distilled is a `Denoiser`.

A Denoiser is a NamedTuple of pure functions over a params pytree, so a network written in
Flax, Equinox, Haiku or plain JAX becomes one by wrapping its call; `dmd2_jax.distill` knows
nothing else about it. Adapters for common cases live in `dmd2_jax.adapters`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from dmd2_jax.typing import Array, Params, PyTree

CONSTANTS = "constants"
"""The key under which a params pytree holds arrays that travel with the weights, untrained."""

Guide = Callable[[Array, Array, Any, Array], Array]
"""(x_0 under the condition [b, ...], x_0 without it, scale w, x_t) -> guided x_0; w is one number,
or one a sample [b]."""


def trainable_mask(params: Params) -> PyTree:
    """Mark the leaves that an optimiser may change: all that lie under no key "constants".

    Constants get no gradient, so that only weight decay could move them:
    `optax.add_decayed_weights(decay, mask=trainable_mask)` leaves them as they are.

    Args:
      params: a pytree of parameters, of one network or of several.

    Returns:
      A pytree of bool of the same structure; False for constants.
    """

    def is_trainable(path: tuple, _: Array) -> bool:
        return all(getattr(entry, "key", None) != CONSTANTS for entry in path)

    return jax.tree_util.tree_map_with_path(is_trainable, params)


class Schedule(NamedTuple):
    """A noise schedule: x_t = alpha(t) x_0 + sigma(t) eps, eps standard normal.

    Attributes:
      alpha: t [b] -> signal scale [b], float32.
      sigma: t [b] -> noise standard deviation in data units [b], float32.
      levels: [n] NumPy array, the grid of times that training draws from; index 0 is the LEAST
        noisy, n - 1 the most. Its dtype is the dtype of t (int32 for discrete schedules).
      prior_scale: t [b] -> standard deviation [b] of the pure noise that a sampler starts from
        when its first time is t.
    """

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    levels: np.ndarray
    prior_scale: Callable[[Array], Array]


class Denoiser(NamedTuple):
    """Pure functions of one model family; `cond` is a pytree with leading batch axis (or None).

    Attributes:
      x0: (params, x_t [b, ...], t [b], cond) -> x_0 [b, ...], float32.
      features: (params, x_t, t, cond) -> tuple of feature arrays for the GAN head. Runs no
        decoder.
      x0_and_features: (params, x_t, t, cond) -> (x_0, features), both from one pass.
      schedule: the noise schedule that t belongs to.
      null_cond: cond -> its unconditional twin (same structure and shapes), for guidance.
      gathers: whether its layers bring weights together themselves where these are split over
        devices (runtime/gathering.py); else it is given whole ones.
      guide: how the two x_0 of guidance become one, of a model that was published with another
        rule; None: u + w (c - u).
    """

    x0: Callable[[Params, Array, Array, PyTree], Array]
    features: Callable[[Params, Array, Array, PyTree], tuple[Array, ...]]
    x0_and_features: Callable[[Params, Array, Array, PyTree], tuple[Array, tuple[Array, ...]]]
    schedule: Schedule
    null_cond: Callable[[PyTree], PyTree]
    gathers: bool = False
    guide: Guide | None = None


class Discriminator(NamedTuple):
    """The GAN head: reads a Denoiser's features.

    Attributes:
      init: (key, features) -> params, where `features` are arrays or ShapeDtypeStructs of the
        shapes that `Denoiser.features` returns.
      logits: (params, features) -> [b] float32; large means "real".
    """

    init: Callable[..., Params]
    logits: Callable[[Params, tuple[Array, ...]], Array]


class Adapter(NamedTuple):
    """How a player that trains few parameters of its own uses those of a frozen base.

    Attributes:
      init: (key, base) -> its own parameters, with which it begins as the base itself.
      combine: (base, own) -> what the player's Denoiser takes. Differentiable in `own`.
    """

    init: Callable[..., Params]
    combine: Callable[[Params, Params], Params]


def map_params(denoiser: Denoiser, change: Callable[[Params], Params]) -> Denoiser:
    """Return the denoiser whose functions apply `change` to their parameters first.

    Args:
      denoiser: the denoiser.
      change: pure, for example the gathering of sharded parameters or a cast.

    Returns:
      A Denoiser of the same parameters.
    """

    def x0(params: Params, x_t: Array, t: Array, cond: PyTree) -> Array:
        return denoiser.x0(change(params), x_t, t, cond)

    def features(params: Params, x_t: Array, t: Array, cond: PyTree) -> tuple[Array, ...]:
        return denoiser.features(change(params), x_t, t, cond)

    def x0_and_features(
        params: Params, x_t: Array, t: Array, cond: PyTree
    ) -> tuple[Array, tuple[Array, ...]]:
        return denoiser.x0_and_features(change(params), x_t, t, cond)

    return denoiser._replace(x0=x0, features=features, x0_and_features=x0_and_features)
