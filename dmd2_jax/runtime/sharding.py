"""One mesh with named axes; today the batch is split over it and everything else replicated."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dmd2_jax.typing import PyTree

__all__ = ["check_batch_size", "make_mesh", "replicate", "replicated", "shard_batch"]


def make_mesh(config: Mapping[str, Any]) -> Mesh:
    """Make the mesh ("data", "fsdp", "tensor") of the run.

    Args:
      config: `config.mesh`; its `data` is the number of devices along the batch, -1 all.

    Returns:
      A mesh of shape [data, 1, 1].

    Raises:
      ValueError: if there are fewer devices than asked for.
    """
    devices = jax.devices()
    wanted = int(config["data"])
    count = len(devices) if wanted == -1 else wanted
    if not 1 <= count <= len(devices):
        raise ValueError(
            f"config.mesh.data={wanted} devices, expected -1 (all) or 1..{len(devices)}, the "
            f"{devices[0].platform} devices here; try -1."
        )
    grid = np.asarray(devices[:count]).reshape(count, 1, 1)
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Check that the batch splits evenly over the data axis.

    Raises:
      ValueError: if it does not, naming the nearest size that does.
    """
    shards = mesh.shape["data"]
    if batch_size < 1 or batch_size % shards:
        nearest = max(shards, round(batch_size / shards) * shards)
        raise ValueError(
            f"batch_size={batch_size} must be divisible by data shards={shards}; try {nearest}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts a whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put every array of `tree` whole on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def shard_batch(batch: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Split every array of `batch` over the data axis.

    Args:
      batch: pytree of arrays that share the batch axis; in a run of several processes, this one's
        rows of each.
      mesh: from `make_mesh`.
      axis: which axis is the batch, 1 for [k, b, ...].

    Returns:
      The same tree as global arrays.

    Raises:
      ValueError: if the batch does not split evenly.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
    processes = jax.process_count()
    for leaf in jax.tree.leaves(batch):
        check_batch_size(leaf.shape[axis] * processes, mesh)
    if processes == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
