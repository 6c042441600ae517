"""One mesh with named axes, and what lies where on it.

Batches are split over `data` and `fsdp` together. Parameters, optimiser states and averages are
split over `fsdp` (fully sharded data parallelism: gathered where they are used, their gradients
scattered back) and over `tensor` (split where they are used, too); with both of size 1 they are
replicated.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Array, PyTree

__all__ = [
    "AXES",
    "BATCH_AXES",
    "Rules",
    "batch_sharding",
    "check_batch_size",
    "check_processes",
    "check_rules",
    "like_params",
    "make_mesh",
    "partition_spec",
    "pin_batch",
    "replicate",
    "replicated",
    "shard_batch",
    "tree_shardings",
]

AXES = ("data", "fsdp", "tensor")
"""The mesh's axes, outermost first."""

BATCH_AXES = ("data", "fsdp")
"""The axes that a batch is split over."""

Rules = Sequence[tuple[str, Sequence[str | None]]]
"""(regular expression for a path such as "params/enc_8x8_conv/kernel", one mesh axis or None for
each axis of the array); the first that is found in the path counts, else the default. Paths begin
where a network's own parameters do, whoever holds them: with "params" or "lora" for the families'
networks, with "head_0" for the GAN head."""

_SMALLEST = 2**11  # elements; below it the default rule replicates: latency outweighs the memory


def make_mesh(config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make the mesh ("data", "fsdp", "tensor") of the run.

    A mesh of fewer devices takes the first ones, and must divide them: one of 3 out of 8 is more
    likely a mistake than a wish. To use just these, hide the others, or pass `devices`.

    Args:
      config: `config.mesh`: the sizes of the axes; one of them may be -1, which is all the
        devices that the others leave. An axis that is not named has size 1.
      devices: to choose from, in this order; None: this run's devices.

    Returns:
      The mesh.

    Raises:
      ValueError: if the sizes do not fit the devices there are, naming the nearest that do.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: int(config.get(axis, 1)) for axis in AXES}
    text = _text(sizes)
    here = f"the {len(devices)} {devices[0].platform} devices here"
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise Refused(
            f"config.mesh has {text}, expected sizes of at least 1 and at most one -1 (the rest); "
            f"try data=-1, fsdp=1, tensor=1 for {here}."
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(devices) % fixed:
        raise Refused(
            f"config.mesh has {text}, which takes "
            f"{f'a multiple of {fixed}' if open_axes else fixed} devices, expected a mesh for "
            f"{here}, with a divisor of {len(devices)}; try {_text(_nearest(sizes, len(devices)))}"
            f", or show the run only the devices it is to use (CUDA_VISIBLE_DEVICES)."
        )
    if open_axes:
        sizes[open_axes[0]] = len(devices) // fixed
    grid = np.asarray(devices[: math.prod(sizes.values())]).reshape(*sizes.values())
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items())


def _nearest(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Return the sizes nearest to these whose product divides `count`; -1 stays."""
    divisors = [number for number in range(1, count + 1) if count % number == 0]
    choices = [[-1] if size == -1 else divisors for size in sizes.values()]
    grids = [dict(zip(sizes, it, strict=True)) for it in itertools.product(*choices)]

    def distance(grid: dict[str, int]) -> tuple[float, int]:
        ratios = (abs(math.log(size / sizes[axis])) for axis, size in grid.items())
        return sum(ratios), -math.prod(grid.values())

    fitting = [grid for grid in grids if count % math.prod(grid.values()) == 0]
    return min(fitting, key=distance)


def check_batch_size(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Check that the batch, and each of its parts, splits evenly over the axes data and fsdp.

    A part that does not would be computed whole by every device.

    Args:
      batch_size: of the whole batch.
      mesh: from `make_mesh`.
      microbatches: parts that are computed one after another.

    Raises:
      ValueError: if it does not, naming the nearest number that does.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1 or batch_size % shards:
        nearest = max(shards, round(batch_size / shards) * shards)
        raise Refused(
            f"batch_size={batch_size} must be divisible by data shards={shards}; try {nearest}."
        )
    each = batch_size // shards
    if each % microbatches:
        fitting = (number for number in range(1, each + 1) if each % number == 0)
        raise Refused(
            f"microbatches={microbatches} makes parts of {batch_size / microbatches:g} out of "
            f"batch_size={batch_size}, expected parts divisible by data shards={shards}; try "
            f"microbatches={min(fitting, key=lambda number: abs(number - microbatches))}."
        )


def check_processes(mesh: Mesh) -> None:
    """Check that every process of the run has an equal part of the batch, and of the mesh.

    Raises:
      ValueError: if devices of some are left out, or if the tensor axis, along which nothing of a
        batch is split, leaves too few parts of it.
    """
    processes, shards = jax.process_count(), mesh.shape["data"] * mesh.shape["fsdp"]
    if processes > 1 and (mesh.size != jax.device_count() or shards % processes):
        raise Refused(
            f"the mesh {dict(mesh.shape)} over {jax.device_count()} devices of {processes} "
            f"processes, expected one over all of them with data x fsdp a multiple of {processes}, "
            f"since every process reads its own part of the batch; lower config.mesh.tensor, or "
            f"set config.mesh.data=-1."
        )


def check_rules(rules: Rules, tree: PyTree, mesh: Mesh, *others: PyTree) -> None:
    """Check that the rules make sense for the networks of a run.

    Args:
      rules: from the config.
      tree: a network's parameters, or their shapes.
      mesh: from `make_mesh`.
      others: further networks' parameters; it is enough that a rule matches in one of them.

    Raises:
      ValueError: if a rule names an axis twice or one that does not exist, matches nothing or does
        not fit what it matches, or if the mesh splits something over an axis that no rule uses.
    """
    specs = [found for it in (tree, *others) for found in _specs(it, mesh, rules)]
    for rule in rules:
        unknown = [axis for axis in rule[1] if axis not in (None, *AXES)]
        if unknown:
            raise Refused(
                f"config.mesh.rules: {rule} names {unknown}, expected axes of {AXES} or None; "
                "correct the names."
            )
        twice = sorted({axis for axis in rule[1] if axis and list(rule[1]).count(axis) > 1})
        if twice:
            raise Refused(
                f"config.mesh.rules: {rule} names {twice} twice, expected each axis once; put - "
                "in the other places."
            )
        if not any(used == rule for _, _, used in specs):
            raise Refused(
                f"config.mesh.rules: no parameter's path matches {rule[0]!r}, expected for example "
                f"{specs[0][0]!r}; correct the pattern or remove the rule."
            )
    used = {axis for _, spec, _ in specs for axis in spec}
    for axis in ("fsdp", "tensor"):
        if mesh.shape[axis] > 1 and axis not in used:
            raise Refused(
                f"config.mesh.{axis}={mesh.shape[axis]}, but no parameter is split over it, "
                f"expected some rule to use it; set {axis}=1 or add a rule with {axis!r}."
            )


def partition_spec(path: str, shape: Sequence[int], mesh: Mesh, rules: Rules = ()) -> PartitionSpec:
    """Return over which mesh axes one array is split.

    By default `tensor` takes the last axis (the output features) of matrices and kernels, and
    `fsdp` the largest axis that is left; each only where it divides, and arrays with fewer than
    2,048 elements are replicated.

    Args:
      path: of the array in its tree, for example "params/enc_8x8_conv/kernel".
      shape: of the array.
      mesh: from `make_mesh`.
      rules: what overrides the default.

    Returns:
      One axis name or None for each axis of the array.

    Raises:
      ValueError: if a rule does not fit the array.
    """
    return _spec_and_rule(path, tuple(shape), mesh, rules)[0]


def tree_shardings(tree: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """Return where each array of a network's parameters lies.

    Args:
      tree: arrays or ShapeDtypeStructs; the rules' paths begin at its root.
      mesh: from `make_mesh`.
      rules: see `partition_spec`.

    Returns:
      The same tree of NamedShardings.

    Raises:
      ValueError: if a rule does not fit an array.
    """
    specs = [NamedSharding(mesh, spec) for _, spec, _ in _specs(tree, mesh, rules)]
    return jax.tree.unflatten(jax.tree.structure(tree), specs)


def like_params(tree: PyTree, params: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """Return where the arrays of an optimiser's state lie: each where its parameter does.

    Moments have the paths of their parameters at the end of their own, and the same shapes. What
    belongs to no parameter, such as a count, is split by size alone.

    Args:
      tree: the optimiser's state, or its shapes.
      params: the parameters, or their shapes.
      mesh: from `make_mesh`.
      rules: see `partition_spec`.

    Returns:
      A tree as `tree` of NamedShardings.

    Raises:
      ValueError: if a rule does not fit a parameter.
    """
    owners = {
        (path, leaf.shape): place
        for (path, leaf), place in zip(
            _named(params), jax.tree.leaves(tree_shardings(params, mesh, rules)), strict=True
        )
    }
    places = []
    for path, leaf in _named(tree):
        ends = ((path[start:], leaf.shape) for start in range(len(path) + 1))  # the longest first
        default = NamedSharding(mesh, _default_spec(tuple(leaf.shape), mesh))
        places.append(next((owners[end] for end in ends if end in owners), default))
    return jax.tree.unflatten(jax.tree.structure(tree), places)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of arrays whose axis number `axis` is the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))


def pin_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Keep arrays inside jit split over the batch, however the compiler splits their neighbours.

    Args:
      tree: arrays with leading batch axis; those that do not split evenly are left alone.
      mesh: from `make_mesh`.

    Returns:
      The same arrays; their gradients are pinned too. Axes behind the batch are left to the
      compiler.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]

    def pin(x: Array) -> Array:
        if x.ndim == 0 or x.shape[0] % shards:
            return x
        spec = PartitionSpec(BATCH_AXES, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return jax.tree.map(pin, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts a whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put every array of `tree` whole on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def shard_batch(batch: PyTree, mesh: Mesh, axis: int = 0) -> PyTree:
    """Split every array of `batch` over the axes data and fsdp.

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
    sharding = batch_sharding(mesh, axis)
    processes = jax.process_count()
    for leaf in jax.tree.leaves(batch):
        check_batch_size(leaf.shape[axis] * processes, mesh)
    if processes == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _specs(
    tree: PyTree, mesh: Mesh, rules: Rules
) -> list[tuple[str, PartitionSpec, tuple[str, Sequence[str | None]] | None]]:
    """Return (path, spec, the rule that gave it) of every leaf, in the tree's order."""
    found = []
    for path, leaf in _named(tree):
        name = "/".join(path)
        found.append((name, *_spec_and_rule(name, tuple(leaf.shape), mesh, rules)))
    return found


def _named(tree: PyTree) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (the names that lead to it, leaf) of every leaf, in the tree's order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf


def _spec_and_rule(
    path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules
) -> tuple[PartitionSpec, tuple[str, Sequence[str | None]] | None]:
    for rule in rules:
        pattern, axes = rule
        if not re.search(pattern, path):
            continue
        fits = len(axes) == len(shape) and all(
            size % mesh.shape.get(axis, 1) == 0 for size, axis in zip(shape, axes, strict=True)
        )
        if not fits:
            raise Refused(
                f"config.mesh.rules: {pattern!r} -> {tuple(axes)} does not fit {path} of shape "
                f"{shape}, expected one axis or None for each of its {len(shape)} axes, of a size "
                f"that divides; the mesh is {dict(mesh.shape)}."
            )
        return PartitionSpec(*axes), rule
    return _default_spec(shape, mesh), None


def _default_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    axes: list[str | None] = [None] * len(shape)
    if np.prod(shape, dtype=np.int64) < _SMALLEST:
        return PartitionSpec(*axes)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    if tensor > 1 and len(shape) > 1 and shape[-1] % tensor == 0:
        axes[-1] = "tensor"
    free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % fsdp == 0]
    if fsdp > 1 and free:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)
