"""Digests of the boxes that arrays are saved in: made by who saves them, compared by who uses them.

An array that is saved in one box has one digest in the manifest, of all its bytes, as in every
release. One that is cut has the shape of its boxes, and the digest of each by where it begins.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from dmd2_jax.config.refused import Refused
from dmd2_jax.run.boxes import Box, box_of, boxes_of, common, shape_of, size_of, slices_of
from dmd2_jax.runtime.integrity import bytes_of, some
from dmd2_jax.runtime.seal import digests
from dmd2_jax.typing import PyTree

__all__ = ["Part", "altered", "joined", "part_digests"]

Part = dict[str, dict[str, str]]
"""{path of an array: {where a box begins: digest}}, of the boxes that one process saves."""


def part_digests(state: PyTree) -> Part:
    """Return the digests of what this process saves; several threads make them.

    Args:
      state: from `shards.held`.
    """
    places, contents = [], []
    for path, array in jax.tree.leaves_with_path(state):
        for box, content in array.parts.items():
            places.append((jax.tree_util.keystr(path), _text(box)))
            contents.append(content)
    found: Part = {}
    for (name, start), digest in zip(places, digests(map(bytes_of, contents)), strict=True):
        found.setdefault(name, {})[start] = digest
    return found


def joined(state: PyTree, parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
    """Return the manifest's arrays.

    Args:
      state: from `shards.held`, of any process.
      parts: from `part_digests`, of all.

    Raises:
      Refused: if a box of an array was nobody's.
    """
    entries: dict[str, dict[str, Any]] = {}
    for path, array in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        found = {start: digest for part in parts for start, digest in part.get(name, {}).items()}
        if found.keys() != set(map(_text, boxes_of(array.shape, array.box))):
            raise Refused(
                f"{len(parts)} processes have saved {some(sorted(found))} of {name}, expected all "
                f"boxes of {array.box} of an array of {array.shape}; start all processes again."
            )
        entry: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
        if array.box == array.shape:
            (entry["digest"],) = found.values()
        else:
            entry |= {"box": list(array.box), "digests": found}
        entries[name] = entry
    return entries


def altered(state: PyTree, recorded: Mapping[str, Any], folder: Path, part: str = "") -> list[str]:
    """Return which arrays are not those that were saved, by every byte that this process holds.

    A box of which it holds only a piece is read again, whole, and that piece is compared with it.

    Args:
      state: what was read.
      recorded: the manifest's arrays.
      folder: what Orbax wrote.
      part: of the saved state that `state` is, "generator.params"; "": all of it.

    Raises:
      Exception: of whatever kind tensorstore finds fit, if the files are damaged.
    """
    wrong: set[str] = set()
    expected: list[tuple[str, str]] = []

    def contents() -> Iterator[memoryview]:
        names = jax.tree.leaves(ocp.tree.get_param_names(state, include_empty_nodes=False))
        for (path, leaf), name in zip(jax.tree.leaves_with_path(state), names, strict=True):
            key = jax.tree_util.keystr(path)
            boxes = _recorded(recorded[key])
            saved = (recorded[key]["shape"], recorded[key]["dtype"])
            if not boxes or (list(leaf.shape), str(leaf.dtype)) != saved:
                wrong.add(key)
                continue
            read = functools.partial(_read, folder, f"{part}.{name}" if part else name)
            for box, array in _used(leaf, boxes, read):
                if array is None:
                    wrong.add(key)
                else:
                    expected.append((key, boxes[box]))
                    yield bytes_of(array)

    for number, found in enumerate(digests(contents())):
        key, digest = expected[number]
        if found != digest:
            wrong.add(key)
    return [key for key in recorded if key in wrong]


def _used(
    leaf: Any, boxes: Iterable[Box], read: Callable[[], np.ndarray]
) -> Iterator[tuple[Box, np.ndarray | None]]:
    """Yield the boxes that this process holds something of, whole, as it holds them.

    Args:
      leaf: the array.
      boxes: that it was saved in.
      read: reads it once more, whole.

    Yields:
      (the box, its content); None for one of which the piece held here is not what is read.
    """
    spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if not spread or leaf.is_fully_replicated:
        whole = np.asarray(leaf)
        yield from ((box, whole[slices_of(box)]) for box in boxes)
        return
    shards = {box_of(shard.index, leaf.shape): shard.data for shard in leaf.addressable_shards}
    again = functools.cache(read)
    for box in boxes:
        pieces = {
            both: np.asarray(data)[slices_of(both, within=own)]
            for own, data in shards.items()
            if (both := common(own, box)) is not None
        }
        if sum(piece.size for piece in pieces.values()) == size_of(box):
            array = np.empty(shape_of(box), leaf.dtype)
            for both, piece in pieces.items():
                array[slices_of(both, within=box)] = piece
            yield box, array
        elif pieces:
            whole = again()
            same = all(
                bytes_of(whole[slices_of(both)]) == bytes_of(piece)
                for both, piece in pieces.items()
            )
            yield box, whole[slices_of(box)] if same else None


def _recorded(entry: Mapping[str, Any]) -> dict[Box, str]:
    """Return the digests of a manifest's array by their boxes; none if those are not all of it."""
    shape = entry["shape"]
    whole = tuple((0, size) for size in shape)
    if "digests" not in entry:
        return {whole: entry["digest"]} if "digest" in entry else {}
    found, shaped = entry["digests"], entry["box"]
    if len(found) * math.prod(shaped) != size_of(whole):
        return {}
    boxes = {_text(box): box for box in boxes_of(shape, shaped)}
    return {boxes[start]: found[start] for start in found} if boxes.keys() == found.keys() else {}


def _text(box: Box) -> str:
    """Spell where a box begins."""
    return ",".join(str(start) for start, _ in box)


def _read(folder: Path, name: str) -> np.ndarray:
    """Read a saved array whole."""
    context = ocp.type_handlers.get_ts_context(use_ocdbt=True)
    info = ocp.type_handlers.ParamInfo(name=name, parent_dir=folder, ts_context=context)
    spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=True)
    return tensorstore.open(spec, open=True, context=context).result().read().result()
