"""Parameters that fsdp splits come together where they are used; their gradients go back apart."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dmd2_jax.runtime.sharding import Rules, partition_spec, tree_shardings
from dmd2_jax.typing import Array, PyTree

__all__ = [
    "apart",
    "brought_together",
    "gather",
    "gathered",
    "gathering",
    "inside",
    "is_gathering",
    "keeps_no_gathered",
]


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
      rules: see `partition_spec`. JAX keeps a jitted function's trace by the mesh and not by
        them: make functions anew for others.
    """
    place = None if mesh.shape["fsdp"] == 1 else _Place(mesh, rules)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), _placed(place):
        yield


@contextmanager
def brought_together(
    params: PyTree, mesh: Mesh, rules: Rules = (), *, by_layer: bool
) -> Iterator[PyTree]:
    """Yield parameters as a network takes them that is traced within.

    Args:
      params: the parameters.
      mesh: from `make_mesh`.
      rules: see `partition_spec`.
      by_layer: whether the network calls `gathered`: then it is given what the devices hold. Not
        on CPUs, whose runtime (jaxlib 0.10.2) runs what a loop gathers and what is gathered beside
        it in an order that differs from device to device, so that they wait for each other for
        ever.
    """
    if by_layer and mesh.devices.flat[0].platform != "cpu":
        with gathering(mesh, rules):
            yield params
    else:
        yield gather(params, mesh, rules)


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


def keeps_no_gathered(primitive: Primitive, *_: Any, **params: Any) -> bool:
    """Let `jax.checkpoint` keep everything for the backward pass but what `gathered` returns.

    Args:
      primitive: what made it.
      params: of the primitive.

    Returns:
      Whether it is kept.
    """
    if primitive.name != "custom_vjp_call":
        return primitive.name != "sharding_constraint"
    inside = {equation.primitive.name for equation in params["call_jaxpr"].jaxpr.eqns}
    return inside != {"sharding_constraint"}


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
    return _whole(leaf, place.sharding(leaf.shape, kind, names))


def apart(leaf: Array, kind: str, *names: str, stack: bool = False) -> Array:
    """Keep an array split as it lies: of what a loop takes the partitioner makes whole arrays.

    Args:
      leaf: the array.
      kind: the collection that it is of.
      names: that lead to it there.
      stack: [n, ...], several such arrays.

    Returns:
      The array, within `gathering` split over its devices; else as it is.
    """
    place = _open.get()
    if place is None:
        return leaf
    shape = leaf.shape[1:] if stack else leaf.shape
    split = place.sharding(shape, kind, names)
    if stack:
        split = NamedSharding(split.mesh, PartitionSpec(None, *split.spec))
    return jax.lax.with_sharding_constraint(leaf, split)


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
