"""The tensors of a torch module that a file holds as an object, by the names of its state dict.

a pickled module     parameters, buffers and submodules in dicts of its own
a TorchScript module the same as attributes, beside constants that its program uses
"""

from typing import Any

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.weights.stand_ins import NumpyArray, Record
from dmd2_jax.weights.unpickle import shown

__all__ = ["NoNetworkError", "entries", "module_tensors", "tensor_of"]

_MOST_MODULES = 100_000
_DEEPEST = 64


class NoNetworkError(Refused):
    """The file was read, and holds no network."""


def module_tensors(module: Record) -> dict[str, np.ndarray]:
    """Return a recorded module's parameters and buffers by name, as its state_dict() would.

    Args:
      module: what `read_torch` returned.

    Returns:
      Tensors by dotted name, in torch's layouts.

    Raises:
      NoNetworkError: if it is no tree of modules.
    """
    tensors: dict[str, np.ndarray] = {}
    pending: list[tuple[str, Any, int]] = [("", module, 0)]
    visited = 0
    while pending:
        prefix, node, depth = pending.pop()
        visited += 1
        if not isinstance(node, Record) or depth > _DEEPEST or visited > _MOST_MODULES:
            raise NoNetworkError(
                f"got a module tree that is no tree of modules at {shown(prefix)!r}, expected "
                f"fewer than {_MOST_MODULES:,} modules, {_DEEPEST} deep; take another copy."
            )
        own, children = _scripted(node) if node.is_scripted else _pickled(node)
        tensors |= {f"{prefix}{name}": tensor for name, tensor in own.items()}
        pending += [(f"{prefix}{name}.", child, depth + 1) for name, child in children.items()]
    return tensors


def _scripted(node: Record) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors = {name: tensor_of(entry) for name, entry in node.state.items()}
    children = {name: entry for name, entry in node.state.items() if isinstance(entry, Record)}
    return {name: it for name, it in tensors.items() if it is not None}, children


def _pickled(node: Record) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    hidden = entries(node, "_non_persistent_buffers_set", set)
    tensors: dict[str, np.ndarray] = {}
    for group in ("_parameters", "_buffers"):
        for name, entry in entries(node, group, dict).items():
            tensor = tensor_of(entry)
            if tensor is not None and (group == "_parameters" or name not in hidden):
                tensors[name] = tensor
    children = entries(node, "_modules", dict)
    return tensors, {name: child for name, child in children.items() if child is not None}


def entries(node: Record, name: str, kind: type) -> Any:
    """Return an attribute of a recorded object, an empty one where it is missing.

    Args:
      node: the object.
      name: the attribute's.
      kind: the type that it must have.

    Raises:
      NoNetworkError: if it has another type.
    """
    found = node.state.get(name, kind())
    if type(found) is not kind:
        raise NoNetworkError(
            f"got {name} of type {type(found).__name__} in {shown(node.class_name)}, expected a "
            f"{kind.__name__}; take another copy."
        )
    return found


def tensor_of(entry: Any) -> np.ndarray | None:
    """Return the array that an entry of a file is, None if it is none."""
    if isinstance(entry, NumpyArray):
        return entry.value
    return entry if isinstance(entry, np.ndarray) else None
