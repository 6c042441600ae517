"""Make a Denoiser of your own network: a plain function, a Flax Linen module, a Flax NNX module.

Equinox, Haiku and anything else with a pure call go through `from_function`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Denoiser, Schedule
from dmd2_jax.diffusion.predictions import check_kind, to_x0
from dmd2_jax.typing import Array, Params, PyTree

__all__ = ["from_function", "from_linen", "from_nnx"]

Predict = Callable[[Params, Array, Array, PyTree], Array]
Features = Callable[[Params, Array, Array, PyTree], tuple[Array, ...]]
Both = Callable[[Params, Array, Array, PyTree], tuple[Array, tuple[Array, ...]]]


def from_function(
    predict: Predict,
    *,
    schedule: Schedule,
    prediction: str = "eps",
    features: Features | None = None,
    predict_with_features: Both | None = None,
    null_cond: Callable[[PyTree], PyTree] | None = None,
) -> Denoiser:
    """Make a Denoiser of a pure function.

    x_0 = to_x0(prediction, predict(params, x_t, t, cond), x_t, alpha(t), sigma(t)).

    Args:
      predict: (params, x_t [b, ...], t [b], cond) -> the network's raw output [b, ...].
      schedule: the noise schedule that t belongs to.
      prediction: what predict returns: "eps", "v", "flow" or "x0".
      features: (params, x_t, t, cond) -> tuple of arrays for the GAN head. Without it the
        features of predict_with_features are used; without both a GAN cannot be.
      predict_with_features: as predict, returning (raw output, features) from one pass; without
        it predict and features are both called where both are needed.
      null_cond: cond -> unconditional twin; by default zeros, which suits one-hot labels and
        embeddings, and is refused for integer labels, where 0 is a class.

    Returns:
      A Denoiser.

    Raises:
      ValueError: if the prediction kind is unknown, or is "eps" on a schedule with alpha = 0.
    """
    check_kind(prediction)
    _check_invertible(prediction, schedule)

    def convert(raw: Array, x_t: Array, t: Array) -> Array:
        return to_x0(prediction, raw, x_t, schedule.alpha(t), schedule.sigma(t))

    def x0(params: Params, x_t: Array, t: Array, cond: PyTree) -> Array:
        return convert(predict(params, x_t, t, cond), x_t, t)

    def only_features(params: Params, x_t: Array, t: Array, cond: PyTree) -> tuple[Array, ...]:
        if features is not None:
            return features(params, x_t, t, cond)
        if predict_with_features is not None:
            return predict_with_features(params, x_t, t, cond)[1]
        raise Refused(
            "the GAN asked for features, but this Denoiser was made without; pass features= or "
            "predict_with_features= (features_method= for a module), or set the GAN weights to "
            "None."
        )

    def x0_and_features(
        params: Params, x_t: Array, t: Array, cond: PyTree
    ) -> tuple[Array, tuple[Array, ...]]:
        if predict_with_features is None:
            return x0(params, x_t, t, cond), only_features(params, x_t, t, cond)
        raw, found = predict_with_features(params, x_t, t, cond)
        return convert(raw, x_t, t), found

    return Denoiser(x0, only_features, x0_and_features, schedule, null_cond or _zeros)


def from_linen(
    module: linen.Module,
    *,
    schedule: Schedule,
    prediction: str = "eps",
    features_method: str | None = None,
    both_method: str | None = None,
    null_cond: Callable[[PyTree], PyTree] | None = None,
) -> Denoiser:
    """Make a Denoiser of a Flax Linen module whose call is module(x_t, t, cond).

    Its params are the "params" collection: `module.init(key, x_t, t, cond)["params"]`. For a
    module with other collections or arguments wrap `module.apply` in `from_function`.

    Args:
      module: the module; __call__(x_t, t, cond) returns the raw prediction.
      schedule: the noise schedule that t belongs to.
      prediction: what the module predicts: "eps", "v", "flow" or "x0".
      features_method: name of the method (x_t, t, cond) -> tuple of features; None: no GAN.
      both_method: name of the method (x_t, t, cond) -> (raw prediction, features).
      null_cond: as in `from_function`.

    Returns:
      A Denoiser.

    Raises:
      ValueError: as `from_function`, or if the module has no method of that name.
    """

    def call(method: str) -> Callable[..., Any]:
        return lambda params, x_t, t, cond: module.apply(
            {"params": params}, x_t, t, cond, method=method
        )

    return _from_methods(
        module, call, schedule, prediction, features_method, both_method, null_cond
    )


def from_nnx(
    module: nnx.Module,
    *,
    schedule: Schedule,
    prediction: str = "eps",
    features_method: str | None = None,
    both_method: str | None = None,
    null_cond: Callable[[PyTree], PyTree] | None = None,
) -> tuple[Denoiser, Params]:
    """Make a Denoiser and its params of a Flax NNX module whose call is module(x_t, t, cond).

    The module is split into its nnx.Param values, which are returned, and the rest, which stays
    fixed: call `module.eval()` first if it has dropout or batch statistics.

    Args:
      module: the module; __call__(x_t, t, cond) returns the raw prediction. Left as it is.
      schedule: the noise schedule that t belongs to.
      prediction: what the module predicts: "eps", "v", "flow" or "x0".
      features_method: name of the method (x_t, t, cond) -> tuple of features; None: no GAN.
      both_method: name of the method (x_t, t, cond) -> (raw prediction, features).
      null_cond: as in `from_function`.

    Returns:
      (Denoiser, params), params an nnx.State; `nnx.update(module, params)` puts trained ones back.

    Raises:
      ValueError: as `from_function`, or if the module has no method of that name.
    """
    graph, params, *rest = nnx.split(module, nnx.Param, ...)

    def call(method: str) -> Callable[..., Any]:
        return lambda params, x_t, t, cond: getattr(nnx.merge(graph, params, *rest), method)(
            x_t, t, cond
        )

    denoiser = _from_methods(
        module, call, schedule, prediction, features_method, both_method, null_cond
    )
    return denoiser, params


def _from_methods(
    module: Any,
    call: Callable[[str], Callable[..., Any]],
    schedule: Schedule,
    prediction: str,
    features_method: str | None,
    both_method: str | None,
    null_cond: Callable[[PyTree], PyTree] | None,
) -> Denoiser:
    for name in (features_method, both_method):
        if name is not None and not callable(getattr(module, name, None)):
            raise Refused(
                f"{type(module).__name__} has no method {name!r}; pass the name of a method of "
                "the module that takes (x_t, t, cond)."
            )
    return from_function(
        call("__call__"),
        schedule=schedule,
        prediction=prediction,
        features=call(features_method) if features_method else None,
        predict_with_features=call(both_method) if both_method else None,
        null_cond=null_cond,
    )


def _zeros(cond: PyTree) -> PyTree:
    if any(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(cond)):
        raise Refused(
            "the default null_cond is zeros, but cond has integer leaves, where 0 is a class; "
            "pass null_cond=lambda cond: your null label, or use one-hot labels."
        )
    return jax.tree.map(jnp.zeros_like, cond)


def _check_invertible(prediction: str, schedule: Schedule) -> None:
    with jax.ensure_compile_time_eval():
        alpha = np.asarray(schedule.alpha(jnp.asarray(schedule.levels[-1:])))[0]
    if prediction == "eps" and alpha == 0.0:
        raise Refused(
            f"prediction='eps' on a schedule with alpha={alpha} at t={schedule.levels[-1]}: eps "
            "does not determine x_0 there; use a 'flow', 'v' or 'x0' network."
        )
