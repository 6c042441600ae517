"""One large batch computed as several small ones: its gradient, or what a function makes of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from dmd2_jax.runtime.summaries import Average, Histogram, Norm, sum_leading
from dmd2_jax.typing import Array, PyTree


def accumulated_grad(
    loss_fn: Callable[[PyTree, PyTree], tuple[Array, tuple[PyTree, dict[str, Any]]]],
    params: PyTree,
    inputs: PyTree,
    microbatches: int,
) -> tuple[PyTree, PyTree, dict[str, Any]]:
    """Return the gradient of a mean over samples, computed a microbatch at a time.

        gradient = 1/n sum_j grad loss(params, inputs_j)

    Equal to the gradient on the whole batch when the loss is a mean over samples, as all losses
    here are; the activations of one microbatch at a time are kept.

    Args:
      loss_fn: (params, inputs) -> (loss, (per-sample outputs with leading axis b, metrics)).
      params: what the gradient is taken for.
      inputs: pytree of arrays with leading axis b.
      microbatches: n, a divisor of b; 1 takes the batch whole.

    Returns:
      The gradient; the per-sample outputs in the batch's order; the metrics of the whole batch:
      values of each sample in its order, numbers averaged, counts, averages and histograms summed,
      a `Norm` as the number it is for all parts together.
    """
    if microbatches == 1:
        gradient, (samples, metrics) = jax.grad(loss_fn, has_aux=True)(params, inputs)
        return gradient, samples, {name: _plain(value) for name, value in metrics.items()}

    def step(total: PyTree, one: PyTree) -> tuple[PyTree, tuple[PyTree, dict[str, Any]]]:
        gradient, aux = jax.grad(loss_fn, has_aux=True)(params, one)
        return jax.tree.map(jnp.add, total, gradient), aux

    zero = jax.tree.map(jnp.zeros_like, params)
    parts = jax.tree.map(lambda x: _split(x, microbatches), inputs)
    total, (samples, metrics) = jax.lax.scan(step, zero, parts)
    gradient = jax.tree.map(lambda g: g / microbatches, total)
    merged = {name: _merge(value) for name, value in sum_leading(metrics).items()}
    return gradient, jax.tree.map(_join, samples), merged


def in_parts(function: Callable[[PyTree], PyTree], inputs: PyTree, parts: int) -> PyTree:
    """Return function(inputs), computed a part of the batch after the other.

    Args:
      function: inputs -> outputs, sample by sample; arrays with leading axis b.
      inputs: pytree of arrays with leading axis b.
      parts: n, a divisor of b; 1 takes the batch whole.
    """
    if parts == 1:
        return function(inputs)
    outputs = jax.lax.map(function, jax.tree.map(lambda x: _split(x, parts), inputs))
    return jax.tree.map(_join, outputs)


# Every n-th sample, so that a batch that is spread over devices stays where it is.
def _split(x: Array, parts: int) -> Array:
    return rearrange(x, "(b n) ... -> n b ...", n=parts)


def _join(x: Array) -> Array:
    return rearrange(x, "n b ... -> (b n) ...")


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Norm) else value


def _merge(value: Any) -> Any:
    """Merge one metric with a leading axis of microbatches."""
    if isinstance(value, Average | Histogram):
        return value  # summed already
    if isinstance(value, Norm):
        return jnp.sqrt(jnp.sum(jnp.square(value.value)))
    if value.ndim > 1:
        return _join(value)
    if jnp.issubdtype(value.dtype, jnp.integer):
        return jnp.sum(value, dtype=value.dtype)
    return jnp.mean(value)
