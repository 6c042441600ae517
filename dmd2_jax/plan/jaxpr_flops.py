"""The floating-point operations of a traced program, with loops counted as often as they run."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex
from jax.interpreters.partial_eval import dce_jaxpr

from dmd2_jax.networks.derivatives import SLOPE

__all__ = ["jaxpr_flops"]


def jaxpr_flops(jaxpr: jex.Jaxpr | jex.ClosedJaxpr, *, again: bool = True) -> float:
    """Count the floating-point operations of a traced program, loops as often as they run.

    A product of matrices or a convolution counts 2 for each multiply-add, anything else that
    computes 1 for each element of its largest operand or result. What nothing depends on, such as
    the gradients of weights that do not train, does not count: no compiler keeps it. Of a branch
    the costliest side counts, each time: an upper bound, where another side is taken now and then.
    A Pallas kernel counts its body as often as its grid has points.

    Args:
      jaxpr: from `jax.make_jaxpr(f)(...)` or `jax.jit(f).trace(...).jaxpr`.
      again: whether what attention's kernel computes a second time, for its gradient, counts.

    Returns:
      FLOPs of all devices together.
    """
    plain: Any = getattr(jaxpr, "jaxpr", jaxpr)
    needed, _ = dce_jaxpr(plain, [True] * len(plain.outvars), instantiate=True)
    return _flops(needed, again)


def _flops(jaxpr: Any, again: bool) -> float:
    plain = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation_flops(equation, again) for equation in plain.eqns)


def _equation_flops(equation: Any, again: bool) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return params["length"] * _flops(params["jaxpr"], again)
    if name == "cond":
        return max(_flops(branch, again) for branch in params["branches"])
    if name == "pallas_call":
        if not again and params["name"].endswith(_AGAIN):
            return 0.0
        return math.prod(params["grid_mapping"].grid) * _flops(params["jaxpr"], again)
    if name.startswith(_CUDNN):
        return _cudnn_flops(equation, again)
    if name == SLOPE.name:
        values = [v.aval for v in equation.invars]
        return _flops(jax.make_jaxpr(params["rules"].slope)(*values), again)
    inner = list(_inner_jaxprs(params))
    if inner:
        devices = math.prod(params["mesh"].shape.values()) if name == "shard_map" else 1
        return devices * sum(_flops(one, again) for one in inner)
    if name == "dot_general":
        return _dot_flops(equation)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    if name in _MOVES:
        return 0.0
    return float(max((_size(v) for v in (*equation.invars, *equation.outvars)), default=0))


_CUDNN = "dot_product_attention_"  # then fwd or bwd
_AGAIN = "fwd_residuals"  # splash attention's forward pass, where a gradient needs its sums

_MOVES = frozenset(
    {
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "dynamic_slice",
        "dynamic_update_slice",
        "gather",
        "iota",
        "pad",
        "reshape",
        "rev",
        "select_n",
        "sharding_constraint",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    # Calls (jit, remat, custom gradients, while) hold what they run under several names; a custom
    # gradient's rules are functions, not jaxprs, so nothing is counted twice.
    for value in params.values():
        if isinstance(value, jex.Jaxpr | jex.ClosedJaxpr):
            yield value


def _size(variable: Any) -> int:
    return int(np.prod(getattr(variable.aval, "shape", ()), dtype=np.int64))


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)


def _cudnn_flops(equation: Any, again: bool) -> float:
    """Count the products of matrices of cuDNN's attention: two forward, five for its gradient."""
    if not again and equation.params.get("is_training"):
        return 0.0
    (b, queries, heads, size), (_, keys, _, _) = (v.aval.shape for v in equation.invars[:2])
    products = 5 if equation.primitive.name.startswith(_CUDNN + "bwd") else 2
    return products * 2.0 * b * heads * queries * keys * size


def _convolution_flops(equation: Any) -> float:
    params = equation.params
    numbers = params["dimension_numbers"]
    lhs, rhs = (v.aval.shape for v in equation.invars[:2])
    out = equation.outvars[0].aval.shape
    taps = 1.0
    for i, (low, _) in enumerate(params["padding"]):
        taps *= _valid_taps(
            size=lhs[numbers.lhs_spec[2 + i]],
            out=out[numbers.out_spec[2 + i]],
            kernel=rhs[numbers.rhs_spec[2 + i]],
            stride=params["window_strides"][i],
            low=low,
            lhs_dilation=params["lhs_dilation"][i],
            rhs_dilation=params["rhs_dilation"][i],
        )
    channels_in = rhs[numbers.rhs_spec[1]]  # of one group
    batch, channels_out = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return 2.0 * batch * channels_out * channels_in * taps / params["batch_group_count"]


def _valid_taps(
    *, size: int, out: int, kernel: int, stride: int, low: int, lhs_dilation: int, rhs_dilation: int
) -> int:
    """Count, along one axis, the pairs (output, tap) that meet an element: no padding, no hole."""
    outputs = np.arange(out)[:, None] * stride - low
    position = outputs + np.arange(kernel)[None] * rhs_dilation
    inside = (position >= 0) & (position < (size - 1) * lhs_dilation + 1)
    return int(np.sum(inside & (position % lhs_dilation == 0)))
