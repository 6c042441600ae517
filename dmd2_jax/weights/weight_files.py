"""Files of weights as others wrote them: named tensors, and what else the file records.

    .safetensors           tensors by name
    .bin .pt .pth .ckpt    torch.save: a state dict, or one under a key such as "ema"
    .pkl                   pickle.dump: NVIDIA's persistent networks, with their constructor's
                           arguments

Nothing in a file is executed (`weights/unpickle.py`).
"""

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.weights.recorded_module import NoNetworkError, entries, module_tensors, tensor_of
from dmd2_jax.weights.stand_ins import Record
from dmd2_jax.weights.state_dict import (
    Tensors,
    read_metadata,
    read_safetensors,
    write_safetensors,
)
from dmd2_jax.weights.torch_files import read_torch, write_torch
from dmd2_jax.weights.unpickle import shown

__all__ = [
    "SUFFIXES",
    "Weights",
    "check_writable",
    "read_weights",
    "strip_prefix",
    "write_weights",
]

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
"""Of the files that can be written; those and .pkl can be read."""

_NETWORKS = ("ema", "G_ema", "model_ema", "net")
"""Keys of a pickle that hold the network, best first: the average is what is published."""

_STATE_DICTS = (*_NETWORKS, "state_dict", "model", "generator")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
      tensors: by name, in torch's layouts.
      class_name: the network's class, where the file records it, else "".
      arguments: the positional arguments of its constructor; None where not recorded.
      keywords: the keyword arguments; None where not recorded.
      key: the entry of the file that the network was under, else "".
      notes: the texts by name that a .safetensors file has beside its tensors.
    """

    tensors: Tensors
    class_name: str = ""
    arguments: tuple[Any, ...] | None = None
    keywords: Mapping[str, Any] | None = None
    key: str = ""
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_weights(path: str | os.PathLike) -> Weights:
    """Read a file of weights.

    Args:
      path: a .safetensors file by its suffix; any other is read as one of torch.save or
        pickle.dump.

    Returns:
      Its tensors, and the network's class and arguments where they are recorded.

    Raises:
      ValueError: if the file is missing, damaged, hostile, or holds no network.
    """
    path = fetched(path)
    if path.suffix == ".safetensors":
        return Weights(read_safetensors(path), notes=read_metadata(path))
    try:
        return _weights(read_torch(path))
    except NoNetworkError as error:
        raise Refused(f"{path}: {error}") from None


def write_weights(
    tensors: Tensors, path: str | os.PathLike, notes: Mapping[str, str] | None = None
) -> None:
    """Write tensors in the format that the suffix names, whole or not at all.

    Args:
      tensors: tensors by name.
      path: the file; .safetensors, or .bin, .pt, .pth for one that torch.load reads.
      notes: what a .safetensors file is to say beside them; the others have no place for it.

    Raises:
      ValueError: if the suffix is another.
      OSError: if the disk refuses.
    """
    check_writable(path)
    if Path(path).suffix == ".safetensors":
        write_safetensors(tensors, path, notes)
    else:
        write_torch(tensors, path)


def check_writable(path: str | os.PathLike) -> None:
    """Refuse a name whose suffix is of no format that can be written.

    Raises:
      ValueError: saying which can be.
    """
    suffix = Path(path).suffix
    if suffix == ".pkl":
        raise Refused(
            f"{path}: EDM's .pkl cannot be written, expected one of {SUFFIXES}: such a file holds "
            "the source code of NVIDIA's networks, whose licence is non-commercial; PyTorch "
            "programs load the tensors from .bin or .safetensors by the same names."
        )
    if suffix not in SUFFIXES:
        raise Refused(f"{path} ends in {suffix!r}, expected one of {SUFFIXES}; rename it.")


def strip_prefix(tensors: Tensors, expected: Collection[str], prefix: str | None = None) -> Tensors:
    """Take a network's tensors out of a wrapper's: "module.", "fake_unet." and the like.

    Args:
      tensors: by name; the network's under one prefix, beside others (a GAN head, say).
      expected: the names of the network's own tensors.
      prefix: the prefix to take; None finds the one there is.

    Returns:
      The tensors under the prefix, without it. Which it was and what was left out is logged.
      Without a prefix, everything.

    Raises:
      ValueError: if the file holds the network more than once, or nothing under `prefix`.
    """
    if prefix is None:
        prefix = _found_prefix(tensors, expected)
    if not prefix:
        return tensors
    prefix = prefix.removesuffix(".") + "."
    taken = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if not taken:
        raise Refused(
            f"no tensor is named {prefix}*, expected the network's; the file has "
            f"{sorted({name.split('.')[0] + '.*' for name in tensors})}."
        )
    others = sorted({name.split(".")[0] for name in tensors if not name.startswith(prefix)})
    left = f"; left out {', '.join(shown(name) + '.*' for name in others)}" if others else ""
    _log.warning("took the %d tensors under %r%s.", len(taken), prefix, left)
    return taken


def _found_prefix(tensors: Tensors, expected: Collection[str]) -> str:
    """Return the prefix under which most of the expected names are, "" if there is none."""
    expected = set(expected)
    if not expected or expected & set(tensors):
        return ""
    anchors = sorted(expected)[:: max(1, len(expected) // 8)]  # some may be missing or renamed
    starts = {name.removesuffix(anchor) for name in tensors for anchor in anchors}
    starts = {start for start in starts if start.endswith(".")}
    counts = {start: sum(start + name in tensors for name in expected) for start in starts}
    found = sorted(start for start, count in counts.items() if 2 * count > len(expected))
    if len(found) > 1:
        raise Refused(
            f"the file holds the network {len(found)} times, under {[shown(f) for f in found]}, "
            f"expected it once; `dmd2 convert` with `prefix={shown(found[0])}` writes one of them "
            "to a file of its own."
        )
    return found[0] if found else ""


def _weights(value: Any, key: str = "") -> Weights:
    """Find the network in what the file holds."""
    if isinstance(value, Record) and value.is_scripted:
        return Weights(module_tensors(value), key=key)
    if isinstance(value, Record):
        return Weights(
            module_tensors(value),
            value.class_name,
            tuple(_plain(entry) for entry in entries(value, "_init_args", tuple)),
            {shown(k): _plain(v) for k, v in entries(value, "_init_kwargs", dict).items()},
            key,
        )
    if not isinstance(value, dict) or not value:
        raise NoNetworkError(
            f"got a {type(value).__name__}, expected a network or its tensors by name; save its "
            "state dict."
        )
    found = ((name, tensor_of(entry)) for name, entry in value.items())
    tensors = {name: tensor for name, tensor in found if tensor is not None and type(name) is str}
    if len(tensors) == len(value):
        return Weights(tensors, key=key)
    for name in _STATE_DICTS if not key else ():
        if isinstance(value.get(name), Record | dict) and value[name]:
            return _weights(value[name], name)
    raise NoNetworkError(
        f"got entries {sorted(shown(name) for name in value)[:10]}, expected tensors by name or a "
        f"network under one of {_STATE_DICTS}; save its state dict."
    )


def _plain(value: Any) -> Any:
    """Return an argument as plain Python; what is no number or text says what it was."""
    if isinstance(value, list | tuple):
        return tuple(v if _is_scalar(v) else f"a {type(v).__name__}" for v in value)
    return value if _is_scalar(value) else f"a {type(value).__name__}"


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
