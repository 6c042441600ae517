"""Functions with a gradient of their own that forward mode can differentiate too.

`jax.custom_vjp` refuses `jax.jvp`. Here reverse mode runs what `jax.custom_vjp` would run, and
forward mode differentiates the plain formula.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dmd2_jax.typing import Array

__all__ = ["SLOPE", "with_gradient"]

Function = Callable[..., Any]


class _Rules(NamedTuple):
    """How tangents go through a function, and how gradients come back.

    Attributes:
      slope: (*arrays, *results, *tangents of the arrays) -> tangents of the results.
      pull: (*arrays, *results, gradient of the first result) -> gradients of the arrays.
      pull_all: (*arrays, *results, *gradients of the results) -> gradients of the arrays.
      num_arrays: how many arrays there are.
    """

    slope: Function
    pull: Function
    pull_all: Function
    num_arrays: int


def with_gradient(
    function: Function, *, saving: Function, plain: Function, backward: Function, num_arrays: int
) -> Function:
    """Return a function with a gradient of its own, for reverse mode alone.

    Reverse mode runs `saving` and then `backward`. Forward mode, and derivatives of derivatives,
    are those of `plain`.

    Args:
      function: arrays -> y, where nobody asks for a derivative.
      saving: arrays -> (y, *others): y, and what `backward` needs besides the arrays.
      plain: arrays -> (y, *others), by operations that JAX can differentiate.
      backward: (*arrays, y, *others, gradient of y) -> gradients of the arrays.
      num_arrays: how many arrays it takes.

    Returns:
      arrays -> y.
    """

    def slope(*values: Array) -> Sequence[Array]:
        return jax.jvp(plain, values[:num_arrays], values[-num_arrays:])[1]

    def pull_all(*values: Array) -> Sequence[Array]:
        gradients = values[num_arrays + (len(values) - num_arrays) // 2 :]
        return jax.vjp(plain, *values[:num_arrays])[1](tuple(gradients))

    rules = _Rules(slope, backward, pull_all, num_arrays)

    # Derivatives of derivatives come here: where a rule asks for the results, they still have one.
    @jax.custom_jvp
    def saved(*arrays: Array) -> tuple[Array, ...]:
        return tuple(saving(*arrays))

    @saved.defjvp
    def saved_rule(arrays: Sequence[Array], tangents: Sequence[Array]) -> tuple[Any, Any]:
        results = saved(*arrays)
        return results, tuple(SLOPE.bind(*arrays, *results, *tangents, rules=rules))

    @jax.custom_jvp
    def wrapped(*arrays: Array) -> Array:
        return function(*arrays)

    @wrapped.defjvp
    def rule(arrays: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
        results, slopes = saved_rule(arrays, tangents)
        return results[0], slopes[0]

    return wrapped


SLOPE = Primitive("slope")
"""The derivative of a function at a point, along tangents; `rules.slope` computes it."""

SLOPE.multiple_results = True


@SLOPE.def_impl
def _slope(*values: Array, rules: _Rules) -> list[Array]:
    return list(rules.slope(*values))


@SLOPE.def_abstract_eval
def _shapes(*values: Any, rules: _Rules) -> list[Any]:
    return list(values[rules.num_arrays : -rules.num_arrays])  # a tangent is as its result


def _derivative(
    values: Sequence[Array], tangents: Sequence[Any], *, rules: _Rules
) -> tuple[Sequence[Array], Sequence[Array]]:
    """Differentiate along the tangents too: linear in them, as the plain formula in the rest."""
    filled = [ad.instantiate_zeros(tangent) for tangent in tangents]
    out = SLOPE.bind(*values, rules=rules)
    known = len(values) - rules.num_arrays
    if all(type(tangent) is ad.Zero for tangent in tangents[:known]):
        return out, SLOPE.bind(*values[:known], *filled[known:], rules=rules)
    return out, list(jax.jvp(rules.slope, tuple(values), tuple(filled))[1])


def _transposed(gradients: Sequence[Any], *values: Any, rules: _Rules) -> list[Any]:
    known = values[: -rules.num_arrays]
    if all(type(gradient) is ad.Zero for gradient in gradients[1:]):
        found = rules.pull(*known, ad.instantiate_zeros(gradients[0]))
    else:
        found = rules.pull_all(*known, *map(ad.instantiate_zeros, gradients))
    asked = [ad.is_undefined_primal(value) for value in values[-rules.num_arrays :]]
    return [None] * len(known) + [g if a else None for g, a in zip(found, asked, strict=True)]


def _batched(
    values: Sequence[Array], axes: Sequence[int | None], *, rules: _Rules
) -> tuple[list[Array], list[int]]:
    size = next(x.shape[axis] for x, axis in zip(values, axes, strict=True) if axis is not None)
    first = [
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(values, axes, strict=True)
    ]
    over = [jax.vmap(function) for function in (rules.slope, rules.pull, rules.pull_all)]
    out = SLOPE.bind(*first, rules=_Rules(over[0], over[1], over[2], rules.num_arrays))
    return out, [0] * len(out)


ad.primitive_jvps[SLOPE] = _derivative
ad.primitive_transposes[SLOPE] = _transposed
batching.primitive_batchers[SLOPE] = _batched
mlir.register_lowering(SLOPE, mlir.lower_fun(_slope, multiple_results=True))
