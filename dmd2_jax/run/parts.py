"""One branch of a checkpoint's state, read without the rest."""

import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dmd2_jax.typing import Array, PyTree

__all__ = ["part_entries", "read_part"]


def part_entries(arrays: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the manifest's entries of one branch, by their path within it.

    Args:
      arrays: the manifest's, by path within the state.
      part: names and positions, "generator.params" or "ema.0".
    """
    prefix = _prefix(part.split("."))
    return {
        path.removeprefix(prefix): entry
        for path, entry in arrays.items()
        if path.startswith((f"{prefix}.", f"{prefix}["))
    }


def read_part(folder: Path, part: str, template: PyTree) -> PyTree:
    """Read one branch of a saved pytree.

    Args:
      folder: what Orbax wrote.
      part: see `part_entries`.
      template: the branch's shapes; a leaf's sharding, where it has one, is where it is put.

    Returns:
      The branch: NumPy arrays, or JAX arrays where the template has a sharding.

    Raises:
      Exception: of whatever kind Orbax finds fit, if the files are damaged.
    """
    handler = ocp.PyTreeCheckpointHandler()
    keys = [int(key) if key.isdecimal() else key for key in part.split(".")]
    # The whole tree without a wish to read it, then the branch in its place.
    item = jax.tree.map(lambda leaf: ocp.PLACEHOLDER, handler.metadata(folder).tree)
    parent = functools.reduce(operator.getitem, keys[:-1], item)
    parent[keys[-1]] = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), template
    )
    as_numpy = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), item)
    whole = handler.restore(folder, args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy))
    return jax.tree.map(_placed, template, functools.reduce(operator.getitem, keys, whole))


def _prefix(keys: Sequence[str]) -> str:
    """Spell the way to a branch as `jax.tree_util.keystr` does."""
    return "".join(f"[{key}]" if key.isdecimal() else f".{key}" for key in keys)


def _placed(shape: Any, leaf: np.ndarray) -> Array | np.ndarray:
    sharding = getattr(shape, "sharding", None)
    return leaf if sharding is None else jax.device_put(leaf, sharding)
