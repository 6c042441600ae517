"""Parameters that fsdp splits come together where they are used; their gradients go back apart."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dmd2_jax.runtime.sharding import Rules, partition_spec, tree_shardings
from dmd2_jax.typing import Array, PyTree

__all__ = ["GATHERED", "gather", "gathered", "gathering", "inside", "is_gathering", "stacked"]

GATHERED = "gathered weight"
"""The name of what `gathered` returns, for policies of `jax.checkpoint`."""


class _Place(NamedTuple):
    """Where the arrays lie, and under which names the modules are that read them."""

    mesh: Mesh
    rules: Rules
    owner: tuple[str, ...] = ()

    def sharding(self, shape: tuple[int, ...], kind: str, names: tuple[str, ...]) -> NamedSharding:
        path = "/".join((kind, *self.owner, *names))
        return NamedSharding(self.mesh, partition_spec(path, shape, self.mesh, self.rules))


_open: ContextVar[_Place | None] = ContextVar("gathering", default=None)


def gather(params: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """Gather parameters from the fsdp axis before a network is called, inside jit.

    For networks that do not call `gathered`. Each array is gathered by itself, so that the
    compiler can do it just before the layer that needs it, and its gradient is scattered back; but
    what a loop or recomputation takes is gathered before it, whole. Nothing happens when fsdp has
    size 1.

    Args:
      params: the parameters.
      mesh: from `make_mesh`.
      rules: see `partition_spec`.

    Returns:
      The same parameters, split over `tensor` only.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    return jax.tree.map(_whole, params, tree_shardings(params, mesh, rules))


@contextmanager
def gathering(mesh: Mesh, rules: Rules = ()) -> Iterator[None]:
    """Let `gathered` gather from this mesh's fsdp axis what is traced within.

    Args:
      mesh: from `make_mesh`; with fsdp of size 1 nothing happens.
      rules: see `partition_spec`.
    """
    with _placed(None if mesh.shape["fsdp"] == 1 else _Place(mesh, rules)):
        yield


@contextmanager
def inside(*names: str) -> Iterator[None]:
    """Say of modules that are applied by themselves under which names their parameters are found.

    Args:
      names: that lead to the module's parameters, behind their collection.
    """
    place = _open.get()
    with _placed(place and place._replace(owner=names)):
        yield


@contextmanager
def _placed(place: _Place | None) -> Iterator[None]:
    token = _open.set(place)
    try:
        yield
    finally:
        _open.reset(token)


def is_gathering() -> bool:
    """Return whether `gathered` does anything to what is traced here."""
    return _open.get() is not None


def gathered(leaf: Array, kind: str, *names: str) -> Array:
    """Gather one array from the fsdp axis where a layer uses it.

    Within recomputation it is gathered again for the backward pass, and within a loop in every
    turn, so that a layer's weights are whole, and not the network's.

    Args:
      leaf: the array.
      kind: the collection that it is of, such as "params".
      names: that lead to it there.

    Returns:
      The array, split over `tensor` only, within `gathering`; else as it is.
    """
    place = _open.get()
    if place is None:
        return leaf
    return checkpoint_name(_whole(leaf, place.sharding(leaf.shape, kind, names)), GATHERED)


def stacked(stack: Array, kind: str, *names: str) -> Array:
    """Keep arrays that are stacked for a loop split as each of them is.

    Args:
      stack: [n, ...].
      kind: the collection that they are of.
      names: that lead to one of them there.

    Returns:
      The stack, within `gathering` split along its other axes; else as it is.
    """
    place = _open.get()
    if place is None:
        return stack
    each = place.sharding(stack.shape[1:], kind, names)
    split = NamedSharding(each.mesh, PartitionSpec(None, *each.spec))
    return jax.lax.with_sharding_constraint(stack, split)


def _whole(leaf: Array, split: NamedSharding) -> Array:
    whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in split.spec))
    return leaf if whole == split.spec else _gather(NamedSharding(split.mesh, whole), split, leaf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(whole: NamedSharding, split: NamedSharding, leaf: Array) -> Array:
    return jax.lax.with_sharding_constraint(leaf, whole)


def _gather_forward(whole: NamedSharding, split: NamedSharding, leaf: Array) -> tuple[Array, None]:
    return _gather(whole, split, leaf), None


def _gather_backward(
    whole: NamedSharding, split: NamedSharding, residual: None, gradient: Array
) -> tuple[Array]:
    # Whole first: a gradient that is born split makes the partitioner split the layer's activations
    # by channels and move them between devices. TPU's compiler makes a reduce-scatter of the two.
    gradient = jax.lax.with_sharding_constraint(gradient, whole)
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gather.defvjp(_gather_forward, _gather_backward)
