"""Multi-head attention whose memory traffic suits the device.

XLA's CPU backend writes the gradient of a plain softmax attention with transposed copies of the
[q, k] weights. On CPU this file recomputes the weights in the orientation that the products read
(keys first), and takes the heads of large images one at a time, so that their weights stay in the
cache; every other platform gets the plain formula. That choice is made when a program is lowered.
Where the mesh is known, a kernel of its devices goes before both: see `fused_attention`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dmd2_jax.networks.derivatives import with_gradient
from dmd2_jax.networks.fused_attention import Kernel, find_kernel
from dmd2_jax.typing import Array, Float, Int

# From this many weights a head on, heads are taken one at a time.
_LARGE_HEAD = 1 << 18


def attention(
    query: Float[Array, "b q heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    lengths: Int[Array, " b"] | None = None,
) -> Float[Array, "b q heads d"]:
    """Attend: softmax(query key^T / sqrt(d)) value, the softmax in float32.

    Differentiable in reverse and in forward mode; see `with_gradient`.

    Args:
      query: [b, q, heads, d].
      key, value: [b, k, heads, d].
      lengths: [b] >= 1, how many keys of each sample are read, the first ones; None: all. Without
        a kernel it is the plain formula on every device.

    Source: Vaswani et al. 2017 (1706.03762), equation 1; the gradient's form is that of
      FlashAttention (2205.14135), appendix B.
    """
    kernel = find_kernel(query, key, lengths=lengths is not None)
    if lengths is not None:
        attend = _of_lengths if kernel is None else _of_lengths_by_kernel(kernel)
        return attend(query, key, value, lengths.astype(jnp.float32))
    if kernel is not None:
        return _by_kernel(kernel)(query, key, value)
    return _by_formula(_attention, query, key, value)


def _of_lengths(query: Array, key: Array, value: Array, lengths: Float[Array, " b"]) -> Array:
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        key_value_seq_lengths=lengths.astype(jnp.int32),
        implementation="xla",
    )


def _by_formula(function: Callable[..., Array], *arrays: Array) -> Array:
    """Apply a function of [n, q or k, d] to arrays [b, q or k, heads, d]."""
    merged = [x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3]) for x in arrays]
    out = function(*merged)
    return out.reshape(arrays[0].shape[0], -1, *out.shape[1:]).swapaxes(1, 2)


@functools.cache
def _by_kernel(kernel: Kernel) -> Callable[..., Array]:
    """Return `attention` by a kernel; forward mode takes the plain formula."""
    return with_gradient(
        kernel.attend,
        saving=lambda *arrays: (kernel.attend(*arrays),),
        plain=lambda *arrays: (_by_formula(lambda *heads: _one_forward(*heads)[0], *arrays),),
        backward=lambda query, key, value, _, g: kernel.gradients(query, key, value, g),
        num_arrays=3,
    )


@functools.cache
def _of_lengths_by_kernel(kernel: Kernel) -> Callable[..., Array]:
    """Return `_of_lengths` by a kernel; lengths are floats, as derivatives take no integers."""

    def backward(*values: Array) -> tuple[Array, ...]:
        *arrays, _, g = values
        return *kernel.gradients(*arrays, g), jnp.zeros_like(arrays[-1])

    return with_gradient(
        kernel.attend,
        saving=lambda *arrays: (kernel.attend(*arrays),),
        plain=lambda *arrays: (_of_lengths(*arrays),),
        backward=backward,
        num_arrays=4,
    )


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(q, k, v, cpu=_cpu_forward, default=_one_forward)


def _backward(*saved: Array) -> tuple[Array, Array, Array]:
    return lax.platform_dependent(*saved, cpu=_cpu_backward, default=_plain_backward)


def _cpu_forward(*heads: Array) -> tuple[Array, Array]:
    return _by_head(_one_forward, *heads)


def _cpu_backward(*heads: Array) -> tuple[Array, Array, Array]:
    return _by_head(_one_backward, *heads)


def _by_head(function: Callable[..., Any], *heads: Array) -> Any:
    """Apply a function of [n, ...] heads, to one head at a time where heads are large."""
    if heads[0].shape[1] * heads[1].shape[1] < _LARGE_HEAD:
        return function(*heads)

    def one(head: tuple[Array, ...]) -> Any:
        return jax.tree.map(lambda x: x[0], function(*(x[None] for x in head)))

    return lax.map(one, heads)


def _product(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    """Multiply each head's matrices along the given axes, summed in float32."""
    dimensions = (((axis_a,), (axis_b,)), ((0,), (0,)))
    sum_type = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, dimensions, preferred_element_type=sum_type)


def _one_forward(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Return the output [n, q, d] and the logits' log-sum-exp [n, q], float32."""
    logits = _product(q * _scale(q), k, 2, 2)
    largest = lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = weights.sum(-1, keepdims=True)
    out = _product(weights.astype(v.dtype), v, 2, 1) / total
    return out.astype(v.dtype), (largest + jnp.log(total))[..., 0]


def _one_backward(
    q: Array, k: Array, v: Array, out: Array, log_sum: Array, g: Array
) -> tuple[Array, Array, Array]:
    """Return the gradients with the weights laid out keys first, [n, k, q]."""
    scaled = q * _scale(q)
    weights = jnp.exp(_product(k, scaled, 2, 2) - log_sum[:, None])
    inner = (out * g).astype(jnp.float32).sum(-1)
    g_logits = (weights * (_product(v, g, 2, 2) - inner[:, None])).astype(q.dtype)
    g_v = _product(weights.astype(q.dtype), g, 2, 1)
    g_k = _product(g_logits, scaled, 2, 1)
    g_q = _product(k.swapaxes(1, 2), g_logits, 2, 1).swapaxes(1, 2) * _scale(q)
    return g_q.astype(q.dtype), g_k.astype(k.dtype), g_v.astype(v.dtype)


def _plain_backward(
    q: Array, k: Array, v: Array, out: Array, log_sum: Array, g: Array
) -> tuple[Array, Array, Array]:
    return jax.vjp(lambda *heads: _one_forward(*heads)[0], q, k, v)[1](g)


def _scale(q: Array) -> Array:
    return jnp.asarray(1 / math.sqrt(q.shape[-1]), q.dtype)


_attention = with_gradient(
    lambda *heads: _forward(*heads)[0],
    saving=_forward,
    plain=_one_forward,
    backward=_backward,
    num_arrays=3,
)
