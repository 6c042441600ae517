"""Equal blocks one after another: written out, or as one compiled block in a loop."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmd2_jax.networks.layers import ADDED
from dmd2_jax.runtime.gathering import apart, inside, is_gathering, keeps_no_gathered
from dmd2_jax.typing import Array, DType, Params, PyTree

__all__ = ["BlockLoop", "blocks_in_a_row"]

Carry = TypeVar("Carry")


class BlockLoop(NamedTuple):
    """How blocks are gone through.

    Attributes:
      remat: "none"; "block": recompute each block's activations in the backward pass; "full": as
        "block" here, and the copies of `scan` too.
      scan: compile one block and loop over their stacked weights. The weights stay as they are
        named, so that every call copies them, in `dtype`; outside of "full" a compiler may copy
        once for many calls, and keep the copies of the whole network. Blocks of unequal adapters
        are not looped over. Copies of weights that lie apart on several devices lie apart too; each
        turn brings its own together, and so does the backward pass.
      dtype: type of the computation.
    """

    remat: str
    scan: bool
    dtype: DType


def blocks_in_a_row(
    owner: nn.Module,
    kind: type[nn.Module],
    settings: Mapping[str, Any],
    names: Sequence[str],
    carry: Carry,
    *fixed: PyTree,
    loop: BlockLoop,
) -> Carry:
    """Apply blocks of one kind: carry <- block(carry, *fixed).

    Args:
      owner: the module whose submodules they are, within its compact call.
      kind: class of the blocks.
      settings: attributes of each.
      names: of the blocks, in their order.
      carry: what each takes and returns.
      fixed: what all of them take beside it.
      loop: how.

    Returns:
      What the last block returns.
    """
    scan = loop.scan and not owner.is_initializing()
    layers = _variables_of(owner, names) if scan else []
    if len(layers) > 1 and len({jax.tree.structure(layer) for layer in layers}) == 1:
        path = (*owner.path, names[0])
        return _scan(kind(**settings, parent=None), path, layers, carry, fixed, loop)
    block = kind if loop.remat == "none" else nn.remat(kind)
    for name in names:
        carry = block(**settings, name=name)(carry, *fixed)
    return carry


def _variables_of(owner: nn.Module, names: Sequence[str]) -> list[Params]:
    """Return each block's weights and, where it has them, its adapters."""
    kinds = owner.variables.items()
    return [{kind: tree[name] for kind, tree in kinds if name in tree} for name in names]


def _scan(
    block: nn.Module,
    path: tuple[str, ...],
    layers: list[Params],
    carry: Carry,
    fixed: tuple[PyTree, ...],
    loop: BlockLoop,
) -> Carry:
    """Apply blocks of equal structure, the first of them found at `path`, one after another."""

    def stack(where: tuple[jax.tree_util.DictKey, ...], *leaves: Array) -> Array:
        if where[0].key == ADDED:  # no weights: an input of each sample
            return jnp.stack(leaves)
        # Matrices are computed with in `dtype` in any case: copy that, not their masters.
        rows = [leaf.astype(loop.dtype) if leaf.ndim > 1 else leaf for leaf in leaves]
        return in_its_place(where, jnp.stack(rows), stack=True)

    def in_its_place(where: Any, leaf: Array, *, stack: bool = False) -> Array:
        kind, *names = (entry.key for entry in where)
        return leaf if kind == ADDED else apart(leaf, kind, *path, *names, stack=stack)

    def step(carry: Carry, layer: Params) -> tuple[Carry, None]:
        layer = jax.tree.map_with_path(in_its_place, layer)
        with inside(*path):
            return block.apply(layer, carry, *fixed), None

    if loop.remat == "full":  # copies that wait for their carry leave no loop around the call
        layers, carry = jax.lax.optimization_barrier((layers, carry))
    if loop.remat != "none":
        # A loop's body is compiled on its own: nothing there can merge the two passes.
        step = jax.checkpoint(step, prevent_cse=False)
    elif is_gathering():  # else the loop would hand every layer's whole weights on
        step = jax.checkpoint(step, prevent_cse=False, policy=keeps_no_gathered)
    return jax.lax.scan(step, carry, jax.tree.map_with_path(stack, *layers))[0]
