"""Attention by kernels that keep the [q, k] weights inside of a chip: JAX's splash on TPU, cuDNN's.

The compiler cannot split a kernel over devices, so it must know the mesh: it runs under
`jax.shard_map`, the batch split over data and fsdp and the heads over tensor, where the code around
says which mesh that is (`jax.sharding.use_abstract_mesh`). Nobody else gets a kernel.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from dmd2_jax.runtime.sharding import AXES, BATCH_AXES
from dmd2_jax.typing import Array, Float

__all__ = ["Kernel", "find_kernel"]

# The chips that splash attention was compiled for, as their devices call themselves.
_TPUS = frozenset(
    {"TPU v4", "TPU v5 lite", "TPU v5e", "TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e", "TPU7x"}
)
_LANES = 128  # lengths are padded to multiples of it
_MIN_LENGTH = 128  # of queries and of keys: padding is most of shorter ones, such as a prompt's 77
_MIN_WEIGHTS = 1 << 16  # a head: 256 queries, 256 keys gain; fewer were not measured
_MAX_SIZE = 256  # of a head
_TILE = 512

_CUDNN_SIZES = range(8, 128 + 1, 8)  # of a head, on every GPU that has the kernel
_CUDNN_CAPABILITY = (8, 0)


class Kernel(NamedTuple):
    """A kernel and where it runs.

    Attributes:
      function: (query, key, value, *lengths) of one device -> what `attention` returns.
      mesh: the devices.
    """

    function: Callable[..., Array]
    mesh: AbstractMesh

    def attend(
        self,
        query: Float[Array, "b q heads d"],
        key: Float[Array, "b k heads d"],
        value: Float[Array, "b k heads d"],
        *lengths: Float[Array, " b"],
    ) -> Float[Array, "b q heads d"]:
        """Attend on all devices; no derivative is defined.

        Args:
          query: [b, q, heads, d].
          key, value: [b, k, heads, d].
          lengths: at most one: how many keys of each sample are read, the first ones.
        """
        return self._split(self.function, (query, key, value, *lengths))

    def gradients(
        self, query: Array, key: Array, value: Array, *more: Array
    ) -> tuple[Array, Array, Array]:
        """Return the gradients of query, key and value.

        The kernel computes the weights' sums again: kept from the forward pass, splash attention
        would write each 128 times.

        Args:
          query, key, value: as in `attend`.
          more: lengths, where there are some, and the gradient of the result.
        """

        def gradients(query: Array, key: Array, value: Array, *more: Array) -> Any:
            def attend(*heads: Array) -> Array:
                return self.function(*heads, *more[:-1])

            return jax.vjp(attend, query, key, value)[1](more[-1])

        return self._split(gradients, (query, key, value, *more))

    def _split(self, function: Callable[..., Any], arrays: tuple[Array, ...]) -> Any:
        """Apply a function of heads [b, n, heads, d] and lengths [b] on each device."""
        heads = PartitionSpec(BATCH_AXES, None, "tensor", None)
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(heads if x.ndim > 1 else PartitionSpec(BATCH_AXES) for x in arrays),
            out_specs=heads,
            check_vma=False,
        )(*arrays)


def find_kernel(query: Array, key: Array, *, lengths: bool = False) -> Kernel | None:
    """Return the kernel for these arrays on the mesh around, or None where there is none.

    Args:
      query: [b, q, heads, d].
      key: [b, k, heads, d].
      lengths: whether it is told how many keys are read. Only splash is: what cuDNN leaves in the
        gradients of keys that are not read was never seen.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or tuple(mesh.axis_names) != AXES or set(mesh.axis_types) != {AxisType.Auto}:
        return None
    function = _function(mesh.abstract_device, query, key)
    if function is None or (lengths and function is not _splash):
        return None
    b, _, heads, _ = query.shape
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if b % shards or heads % mesh.shape["tensor"]:
        warnings.warn(
            f"attention of {heads} heads and {b} samples takes the plain formula, which moves more "
            f"memory: the mesh splits heads {mesh.shape['tensor']} and samples {shards} times, "
            "which does not divide them; choose config.mesh.tensor and the batch so that it does.",
            stacklevel=2,
        )
        return None
    return Kernel(function, mesh)


def _function(device: Any, query: Array, key: Array) -> Callable[..., Array] | None:
    """Return the kernel of a kind of device that takes arrays of these shapes and types."""
    queries, size, keys = query.shape[1], query.shape[3], key.shape[1]
    if device is None or queries * keys < _MIN_WEIGHTS or min(queries, keys) < _MIN_LENGTH:
        return None
    if device.device_kind in _TPUS:
        return _splash if size <= _MAX_SIZE else None
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if device.platform == "gpu" and half and size in _CUDNN_SIZES and _has_cudnn():
        return _cudnn
    return None


@functools.cache
def _has_cudnn() -> bool:
    """Return whether the GPUs here have the kernel: NVIDIA's, from Ampere on, with cuDNN."""
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    numbers = tuple(int(part) for part in capability.split(".") if part.isdecimal())
    if numbers < _CUDNN_CAPABILITY:
        return False
    head = jax.ShapeDtypeStruct((1, 128, 1, 64), jnp.bfloat16)
    try:
        jax.eval_shape(_cudnn, head, head, head)
    except RuntimeError:  # no cuDNN, or one that is too old
        return False
    return True


def _cudnn(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _splash(query: Array, key: Array, value: Array, *lengths: Array) -> Array:
    # Pallas takes a second to import; who has no TPU never needs it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    b, queries, heads, size = query.shape
    keys = key.shape[1]
    q, k, v = (_padded(x) for x in (query * jnp.asarray(size**-0.5, query.dtype), key, value))
    # Keys that nobody reads are of another segment: those that pad, and those behind a length.
    ends = lengths[0].astype(jnp.int32)[:, None] if lengths else jnp.full((1, 1), keys)
    others = (jnp.arange(k.shape[2]) >= ends).astype(jnp.int32)
    first = jnp.zeros((len(others), q.shape[2]), jnp.int32)
    ids = splash.SegmentIds(first, others) if lengths or k.shape[2] > keys else None
    if not lengths:  # all samples' heads as one sample's
        q, k, v = (x.reshape(1, b * heads, *x.shape[2:]) for x in (q, k, v))
    kernel = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.FullMask((q.shape[2], k.shape[2]))] * q.shape[1]),
        block_sizes=_tiles(splash, q.shape[2], k.shape[2]),
        interpret=jax.sharding.get_abstract_mesh().abstract_device.platform == "cpu",
    )
    out = jax.vmap(kernel)(q, k, v, ids)
    return out.reshape(b, heads, -1, size)[:, :, :queries].swapaxes(1, 2)


def _padded(x: Array) -> Array:
    """Return [b, heads, n, d], n padded so that it splits into tiles."""
    multiple = _LANES if x.shape[1] <= _TILE else 2 * _LANES
    ends = ((0, 0), (0, 0), (0, -x.shape[1] % multiple), (0, 0))
    return jnp.pad(x.swapaxes(1, 2), ends)


def _tiles(splash: Any, queries: int, keys: int) -> Any:
    """Return the sizes of the tiles that the kernel holds at once."""
    # Up to 4,096 keys at once: then the kernel reads every array once.
    q, k = _tile(queries, _TILE), _tile(keys, 8 * _TILE)
    computed = _tile(k, _TILE)
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
