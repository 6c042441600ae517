"""Arrays that wait in the host's memory and come to the device where they are used.

A sharding says in which memory an array lies, and inside of jit an array's type says so too: what
runs there needs no other sign of what to fetch and where to put it back.
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import jax
from jax.sharding import Mesh, Sharding

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import PyTree

__all__ = [
    "check_offload",
    "fetched",
    "host_shardings",
    "in_host_memory",
    "on_host",
    "put_back",
]

HOST = "pinned_host"
"""The memory kind of host memory that the device copies from and to by itself."""

_SMALLEST = 2**11  # elements; a smaller array stays: latency outweighs the memory


def check_offload(offload: Sequence[str], allowed: Sequence[str], mesh: Mesh) -> None:
    """Check what is to wait in the host's memory, and that the devices can fetch it from there.

    Args:
      offload: names, `config.mesh.offload`.
      allowed: names there are.
      mesh: from `make_mesh`.

    Raises:
      ValueError: if a name is unknown, or the devices cannot use the host's memory.
    """
    unknown = sorted(set(offload) - set(allowed))
    if unknown:
        raise Refused(
            f"config.mesh.offload has {unknown}, expected names of {tuple(allowed)}; correct them "
            "(() is none)."
        )
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()] if offload else [HOST]
    if HOST not in kinds:
        raise Refused(
            f"config.mesh.offload={tuple(offload)} needs memory of the kind {HOST!r}, which "
            f"{device.device_kind} does not have (it has {kinds}); set config.mesh.offload=() "
            "and save memory with mesh.fsdp, model.remat or optim.moment_dtype."
        )


def on_host() -> AbstractContextManager:
    """Return a context in which new arrays are made on the host's processor, if JAX has it.

    For what is drawn whole before it is split over the devices.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        return contextlib.nullcontext()


def in_host_memory(sharding: Sharding) -> bool:
    """Return whether a sharding puts its array in the host's memory."""
    return sharding.memory_kind == HOST


def host_shardings(tree: PyTree, shardings: PyTree) -> PyTree:
    """Return shardings that put a tree's arrays of at least 2,048 elements in the host's memory.

    Args:
      tree: arrays, or their shapes.
      shardings: where they lie; a tree as `tree`.
    """

    def moved(leaf: jax.ShapeDtypeStruct, place: Sharding) -> Sharding:
        return place.with_memory_kind(HOST) if leaf.size >= _SMALLEST else place

    return jax.tree.map(moved, tree, shardings)


def fetched(tree: PyTree) -> PyTree:
    """Bring the arrays of a tree that lie in the host's memory to the device, inside of jit."""
    space = jax.memory.Space

    def fetch(x: jax.Array) -> jax.Array:
        waits = jax.typeof(x).memory_space == space.Host
        return jax.device_put(x, space.Device) if waits else x

    return jax.tree.map(fetch, tree)


def put_back(new: PyTree, old: PyTree) -> PyTree:
    """Put each array of `new` in the memory where its forerunner in `old` lies, inside of jit."""

    def put(n: jax.Array, o: jax.Array) -> jax.Array:
        space = jax.typeof(o).memory_space
        return n if jax.typeof(n).memory_space == space else jax.device_put(n, space)

    return jax.tree.map(put, new, old)
