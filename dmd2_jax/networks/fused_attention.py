"""Attention by a kernel that keeps the [q, k] weights inside of the chip: TPU's.

The kernel is JAX's own "splash" attention. The compiler cannot split it over devices, so it must
know the mesh: it runs under `jax.shard_map`, the batch split over data and fsdp and the heads
over tensor, where the code around says which mesh that is (`jax.sharding.use_abstract_mesh`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from dmd2_jax.runtime.sharding import AXES, BATCH_AXES
from dmd2_jax.typing import Array, Float

__all__ = ["fused_attention", "kernel_mesh"]

# The chips that the kernel was compiled for, as their devices call themselves.
_CHIPS = frozenset({"TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"})
_LANES = 128  # lengths are padded to multiples of it
_MIN_WEIGHTS = 1 << 18  # a head; below it the compiler's own program moves no more
_MAX_HEAD = 256
_BLOCK = 512


def kernel_mesh(query: Array, key: Array) -> AbstractMesh | None:
    """Return the mesh to run the kernel on, or None where it does not apply.

    Args:
      query: [b, q, heads, d].
      key: [b, k, heads, d].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or tuple(mesh.axis_names) != AXES or set(mesh.axis_types) != {AxisType.Auto}:
        return None
    device = mesh.abstract_device
    b, queries, heads, size = query.shape
    keys = key.shape[1]
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    applies = (
        device is not None
        and device.device_kind in _CHIPS
        and min(queries, keys) >= _LANES
        and queries * keys >= _MIN_WEIGHTS
        and size <= _MAX_HEAD
        and b % shards == 0
        and heads % mesh.shape["tensor"] == 0
    )
    return mesh if applies else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def fused_attention(
    query: Float[Array, "b q heads d"],
    key: Float[Array, "b k heads d"],
    value: Float[Array, "b k heads d"],
    mesh: AbstractMesh,
) -> Float[Array, "b q heads d"]:
    """Attend as `attention` does, on a mesh from `kernel_mesh`."""
    return _split(_kernel, mesh)(query, key, value)


def _forward(query: Array, key: Array, value: Array, mesh: AbstractMesh) -> tuple[Array, tuple]:
    return fused_attention(query, key, value, mesh), (query, key, value)


def _backward(mesh: AbstractMesh, saved: tuple, g: Array) -> tuple[Array, ...]:
    return _split(_gradients, mesh)(*saved, g)


fused_attention.defvjp(_forward, _backward)


def _split(function: Callable[..., Any], mesh: AbstractMesh) -> Callable[..., Any]:
    spec = PartitionSpec(BATCH_AXES, None, "tensor", None)
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _gradients(query: Array, key: Array, value: Array, g: Array) -> tuple[Array, ...]:
    # The kernel computes the weights' sums again: kept from the forward pass they would be written
    # 128 times over, and no fewer bytes move.
    return jax.vjp(_kernel, query, key, value)[1](g)


def _kernel(query: Array, key: Array, value: Array) -> Array:
    """Attend with the arrays of one device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import (
        FullMask,
        MultiHeadMask,
    )

    b, queries, heads, size = query.shape
    keys = key.shape[1]
    q, k, v = (_merged(x) for x in (query * jnp.asarray(size**-0.5, query.dtype), key, value))
    ids = None
    if q.shape[1:] != (queries, size) or k.shape[1] != keys:
        ids = splash.SegmentIds(
            jnp.zeros(q.shape[1], jnp.int32), (jnp.arange(k.shape[1]) >= keys).astype(jnp.int32)
        )
    kernel = splash.make_splash_mha_single_device(
        MultiHeadMask([FullMask((q.shape[1], k.shape[1]))] * q.shape[0]),
        block_sizes=_blocks(splash, q.shape[1], k.shape[1]),
        interpret=jax.sharding.get_abstract_mesh().abstract_device.platform == "cpu",
    )
    out = kernel(q, k, v, ids)[:, :queries]
    return out.reshape(b, heads, queries, size).swapaxes(1, 2)


def _merged(x: Array) -> Array:
    """Return [b heads, n, d], n padded to a multiple of 128."""
    merged = x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])
    return jnp.pad(merged, ((0, 0), (0, -x.shape[1] % _LANES), (0, 0)))


def _blocks(splash: Any, queries: int, keys: int) -> Any:
    """Return the sizes of the tiles that the kernel holds at once."""
    q, k, computed = _tile(queries, _BLOCK), _tile(keys, 2 * _BLOCK), _tile(keys, _BLOCK)
    tokens_last = splash.QKVLayout.SEQ_MINOR  # 64 channels a head would be padded to 128
    return splash.BlockSizes(
        block_q=q,
        block_kv=k,
        block_kv_compute=computed,
        block_q_dkv=q,
        block_kv_dkv=k,
        block_kv_dkv_compute=computed,
        use_fused_bwd_kernel=True,
        q_layout=tokens_last,
        k_layout=tokens_last,
        v_layout=tokens_last,
    )


def _tile(length: int, most: int) -> int:
    """Return the largest multiple of 128 up to `most` that divides a length."""
    return max(n for n in range(_LANES, min(length, most) + 1, _LANES) if length % n == 0)
