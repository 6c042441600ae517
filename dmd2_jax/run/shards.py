"""The parts of a state that this process saves, and how Orbax writes them.

A sharding cuts an array into boxes of one shape. Each box is written, and digested, by one of the
processes that hold it. What it writes is in host memory, in copies that nobody changes, before the
next step overwrites the arrays; so saving needs no device and no other process after that.
"""

import asyncio
import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax.sharding import Sharding

from dmd2_jax.run.boxes import Box, box_of, shape_of, size_of, slices_of
from dmd2_jax.runtime.distributed import is_first
from dmd2_jax.runtime.offload import in_host_memory
from dmd2_jax.typing import PyTree

__all__ = ["Held", "held", "state_handler"]


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """One array of a state, a leaf, as far as this process saves it.

    Attributes:
      shape: of the whole array.
      dtype: of its elements.
      box: shape of the boxes that it is cut into.
      parts: the boxes that this process saves; others save the others.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    box: tuple[int, ...]
    parts: Mapping[Box, np.ndarray]


def held(state: PyTree) -> PyTree:
    """Copy what this process saves of a state into host memory; every process must ask.

    The copies of all arrays are begun before the first is waited for. They are all that a save
    makes the caller wait for: afterwards the state may be donated.

    Args:
      state: arrays of JAX or NumPy. Those that are not of all processes are saved by the first.

    Returns:
      The state's tree of `Held`.
    """
    leaves, structure = jax.tree.flatten(state)
    load: collections.Counter[int] = collections.Counter()
    cut = [_cut(leaf, load) for leaf in leaves]
    for _, parts in cut:
        for part in parts.values():
            if isinstance(part, jax.Array):
                part.copy_to_host_async()
    copies = [
        Held(np.shape(leaf), np.dtype(leaf.dtype), box, {at: _own(it) for at, it in parts.items()})
        for leaf, (box, parts) in zip(leaves, cut, strict=True)
    ]
    return jax.tree.unflatten(structure, copies)


def state_handler() -> ocp.PyTreeCheckpointHandler:
    """Return what writes a tree of `Held`."""
    registry = ocp.type_handlers.create_type_handler_registry(
        (Held, _HeldHandler()),
        # None is saved; Orbax warns where it cannot ask this one.
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _cut(leaf: Any, load: collections.Counter[int]) -> tuple[tuple[int, ...], dict[Box, Any]]:
    """Return the shape of an array's boxes, and those that this process saves, where they lie.

    Args:
      leaf: the array.
      load: bytes that each process saves, the same in all; this array's are added.
    """
    shape = np.shape(leaf)
    of_all = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if not of_all and (jax.process_count() > 1 or not isinstance(leaf, jax.Array)):
        return shape, {tuple((0, size) for size in shape): leaf} if is_first() else {}
    holders = _holders(leaf.sharding, shape)
    size = size_of(next(iter(holders))) * leaf.dtype.itemsize
    owners = _owners(holders, size, load)
    ours = {box for box, owner in owners.items() if owner == jax.process_index()}
    shards = leaf.addressable_shards if ours else ()
    parts = {box_of(shard.index, shape): shard.data for shard in shards}
    return shape_of(next(iter(holders))), {box: parts[box] for box in parts if box in ours}


def _owners(
    holders: Mapping[Box, Sequence[int]], size: int, load: collections.Counter[int]
) -> dict[Box, int]:
    """Return who saves each box: of those that hold it, the one that has the least to save.

    Args:
      holders: the processes that hold each.
      size: bytes of one.
      load: see `_cut`.
    """
    owners = {}
    for box, processes in holders.items():
        owners[box] = min(processes, key=load.__getitem__)
        load[owners[box]] += size
    return owners


@functools.lru_cache(maxsize=4096)
def _holders(sharding: Sharding, shape: tuple[int, ...]) -> dict[Box, tuple[int, ...]]:
    """Return the boxes that an array is cut into, and the processes that hold each."""
    found: dict[Box, set[int]] = {}
    indices: Mapping[Any, tuple[slice, ...]] = sharding.devices_indices_map(shape)
    for device, index in indices.items():
        found.setdefault(box_of(index, shape), set()).add(device.process_index)
    return {box: tuple(sorted(found[box])) for box in sorted(found)}


def _own(part: Any) -> np.ndarray:
    """Return an array in host memory that nobody changes."""
    array = np.asarray(part)
    if isinstance(part, jax.Array):
        platform = next(iter(part.devices())).platform
        if platform != "cpu" and not in_host_memory(part.sharding):
            return array  # which came from the device for this
    # Else it is a view of memory that the next step may overwrite.
    return np.array(array, copy=True, order="C")


class _HeldHandler(ocp.type_handlers.NumpyHandler):
    """Writes `Held`, as arrays of NumPy, which are read into whatever a template says."""

    async def serialize(
        self, values: Sequence[Held], infos: Sequence[Any], args: Any = None
    ) -> Sequence[ocp.future.Future]:
        """Begin to write; see `ocp.type_handlers.TypeHandler`."""

        async def write() -> None:
            await asyncio.gather(*map(_write, values, infos))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="state")]


async def _write(value: Held, info: Any) -> None:
    """Write the parts of one array into this process's database, which Orbax merges with others."""
    await info.await_path_creation()
    spec = tensorstore.Spec(
        ocp.type_handlers.get_json_tspec_write(
            info,
            use_ocdbt=True,
            global_shape=value.shape,
            local_shape=value.box,
            dtype=value.dtype,
            process_index=jax.process_index(),
        )
    )
    context = info.ts_context
    if is_first():  # what describes the array is written once
        await tensorstore.open(spec, create=True, open=True, context=context)
    if not value.parts:
        return
    store = await tensorstore.open(spec, open=True, assume_metadata=True, context=context)
    writes = [
        store[slices_of(box)].write(part, can_reference_source_data_indefinitely=True)
        for box, part in value.parts.items()
    ]
    await asyncio.gather(*writes)
