"""What tells a sound checkpoint from a damaged one: digests, a sealed manifest, no links.

Orbax restores a flipped bit without a word. So a manifest beside the arrays records the shape,
dtype and BLAKE2b digest of each, together with everything else that the checkpoint says about
itself, and is sealed by a digest of its own.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.runtime.distributed import to_host
from dmd2_jax.runtime.places import holds_checkpoints, in_bucket
from dmd2_jax.runtime.seal import (
    SEAL,
    canonical,
    check_reached,
    digest,
    digests,
    is_sealed,
    seal,
)
from dmd2_jax.typing import PyTree

__all__ = [
    "UNFINISHED",
    "Misplaced",
    "array_entries",
    "bytes_of",
    "mismatches",
    "params_digest",
    "read_manifest",
    "refuse_links",
    "sealed",
    "some",
    "step_folders",
]

_COMMITTED = "commit_success.txt"
"""Orbax's mark of a finished step in a bucket."""

UNFINISHED = "unfinished.txt"
"""The mark of a step of s3:// that is not whole; a run that was copied there has none."""

Manifest = dict[str, Any]
"""{"arrays": {path: {shape, dtype, digest}}, "extra": anything JSON holds, "seal": digest}.

"of" besides: {"step", "run"}, whose it is; checkpoints of older releases do not say.
"""


class Misplaced(Refused):
    """A sound checkpoint of another step or run than its place says."""


def array_entries(tree: PyTree) -> dict[str, dict[str, Any]]:
    """Describe every array as {path: {shape, dtype, digest}}; only the shapes of shapes."""
    entries: dict[str, dict[str, Any]] = {}
    arrays = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        entries[name] = {"shape": list(np.shape(leaf)), "dtype": str(np.dtype(leaf.dtype))}
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            arrays[name] = leaf
    # Processes exchange their parts one array after the other, in the thread that asks.
    for name, found in zip(arrays, digests(map(bytes_of, arrays.values())), strict=True):
        entries[name]["digest"] = found
    return entries


def params_digest(params: PyTree) -> str:
    """Return one digest of a network's weights: names, shapes, types and values.

    It does not depend on the file or format that they were read from.
    """
    return digest(canonical(array_entries(params)))


def sealed(
    arrays: Mapping[str, Any], extra: Mapping[str, Any], of: Mapping[str, Any] | None = None
) -> Manifest:
    """Make the manifest of a checkpoint, with the digest that protects it.

    Args:
      arrays: from `array_entries`.
      extra: anything JSON can hold.
      of: whose it is, "step" and "run"; None: it does not say.
    """
    content = {"arrays": dict(arrays), "extra": dict(extra)}
    return seal(content if of is None else content | {"of": dict(of)})


def read_manifest(folder: Path, run: str | None = None) -> Manifest:
    """Read the manifest of one checkpoint.

    Args:
      folder: of the step.
      run: the identity of the run that it should be of; None: of any.

    Raises:
      Misplaced: if it is sound, and of another step or run than the folder says.
      ValueError: if it is missing, no JSON, or not what was written.
      OSError: if it cannot be read at the moment.
    """
    path = folder / "meta" / "metadata"
    try:
        manifest = read_json(path)
        known = {"arrays": manifest["arrays"], "extra": manifest["extra"], SEAL: manifest[SEAL]}
        sound = manifest.keys() - {"of"} == known.keys() and is_sealed(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        check_reached(error, path)
        brief = str(error).splitlines() or [""]
        raise Refused(
            f"its manifest cannot be read ({type(error).__name__}: {brief[0]:.200})"
        ) from error
    if not sound:
        raise Refused("its manifest does not match its own digest")
    of = manifest.get("of")
    _check_place(folder, of if isinstance(of, Mapping) else {}, run)
    return manifest


def bytes_of(array: Any) -> memoryview:
    """Return an array's bytes, in C order, without a copy where it lies so in host memory."""
    flat = np.ascontiguousarray(to_host(array)).reshape(-1)
    return flat.view(np.uint8).data


def _check_place(folder: Path, of: Mapping[str, Any], run: str | None) -> None:
    """Refuse a sound checkpoint in a place that is not its own; older ones do not say theirs."""
    step, theirs = of.get("step"), of.get("run")
    if step is not None and folder.name.isdecimal() and int(folder.name) != step:
        raise Misplaced(
            f"checkpoint {folder} is the one of step {step}, expected that of step {folder.name}; "
            f"it was renamed: give the folder its name {step} back, or move it away."
        )
    if run is not None and theirs not in (None, run):
        raise Misplaced(
            f"checkpoint {folder} is of another run ({theirs}), expected one of this run ({run}); "
            "move it away, and copy the run's own back."
        )


def mismatches(recorded: Mapping[str, Any], template: PyTree) -> str:
    """Say how a template differs in structure, shape or dtype from what a manifest records.

    Args:
      recorded: the manifest's arrays.
      template: pytree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      One phrase; empty if nothing differs.
    """
    expected = {
        jax.tree_util.keystr(path): (list(leaf.shape), str(np.dtype(leaf.dtype)))
        for path, leaf in jax.tree.leaves_with_path(template)
    }
    found = {path: (entry["shape"], entry["dtype"]) for path, entry in recorded.items()}
    missing = sorted(expected.keys() - found.keys())
    surplus = sorted(found.keys() - expected.keys())
    differing = [
        f"{path} is {found[path]}, expected {expected[path]}"
        for path in sorted(expected.keys() & found.keys())
        if expected[path] != found[path]
    ]
    if not (missing or surplus or differing):
        return ""
    return (
        f"{len(missing)} arrays missing {some(missing)}, {len(surplus)} too many "
        f"{some(surplus)}, {len(differing)} differing {some(differing)}"
    )


def refuse_links(directory: Path) -> None:
    """Refuse a checkpoint directory with symbolic links: what they point to is not the run's.

    Reading one would load, and keeping the last n would delete, files that lie elsewhere.

    Raises:
      ValueError: naming the first link and where it points.
    """
    for path in _links(directory):
        raise Refused(
            f"{path} is a symbolic link to {os.readlink(path)}, expected a checkpoint directory "
            f"without links, which may point outside of it; remove the link, or choose another "
            f"workdir (which may itself be a link)."
        )


def step_folders(directory: Path) -> dict[int, Path]:
    """Return the folders of the finished steps, good or not, newest first."""
    if not directory.is_dir():
        return {}
    entries = [entry for entry in directory.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    if in_bucket(directory):  # where a step has its name from its first file on
        by_orbax = holds_checkpoints(directory)
        mark = _COMMITTED if by_orbax else UNFINISHED
        entries = [entry for entry in entries if (entry / mark).exists() == by_orbax]
    return {int(entry.name): entry for entry in sorted(entries, key=lambda e: -int(e.name))}


def some(names: list[str], most: int = 3) -> str:
    """List the first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"[{', '.join(names[:most])}]{more}"


def _links(directory: Path) -> Iterator[Path]:
    if in_bucket(directory):
        return  # which has none
    if directory.is_symlink():
        yield directory
        return
    for folder, folders, files in os.walk(directory, followlinks=False):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                yield path
