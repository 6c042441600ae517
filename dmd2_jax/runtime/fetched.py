"""Copies on this machine of what lies in a bucket, for everything that reads files.

Readers seek, map and decode files in many threads, and libraries take names of files alone; so
what a bucket has is copied first, into the user's cache, and a file again only when it changed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.runtime.distributed import say
from dmd2_jax.runtime.places import check_place, client_of, in_bucket, reaching
from dmd2_jax.runtime.platform import user_cache
from dmd2_jax.runtime.whole_file import room_for, scratch_folder, whole_file

__all__ = ["fetched"]

_VERSIONS = "versions.json"
"""Of a copied folder, in a tree beside: name -> [bytes, what the bucket calls the content]."""

_AT_ONCE = 1000
"""Files that are copied before it is noted which are there."""

_SAID = 50_000_000
"""Bytes that take long enough to say so."""


def fetched(path: str | os.PathLike) -> Path:
    """Return a path of this machine at which a file or folder can be read.

    Files that are no longer in the bucket go from the copy of a folder too.

    Args:
      path: of this machine, which is returned as it is, or of a bucket.

    Raises:
      Missing: if the bucket has nothing there.
      Refused: if the path is of another place, a name in the bucket is no path of a file, or this
        machine has no room for the copy.
      OSError: if the bucket or the disk refuses.
    """
    check_place(path)
    if not in_bucket(path):
        return Path(path)
    client, key = client_of(path)
    key = key.rstrip("/")
    with reaching(path):
        there = _listed(client, key, path)
    if not there:
        raise Missing(f"{path} is not there, expected a file or folder; mind the bucket's name.")
    root = user_cache() / "buckets" / os.fspath(path).partition(":")[0] / "files"
    stale = _stale(root, there)
    if stale:
        _check_room(path, root, stale)
        if (size := sum(size for size, _ in stale.values())) >= _SAID:
            say(f"copying {size / 1e6:,.0f} MB, {len(stale)} files, of {path} to {root} ...")
    names = sorted(stale)
    for i in range(0, len(names), _AT_ONCE):
        _copy(client, root, {name: stale[name] for name in names[i : i + _AT_ONCE]}, path)
    target = root / key
    if target.is_dir():
        _remove_others(root, target, set(there))
    return target


_Version = tuple[int, str]


def _listed(client: Any, key: str, path: str | os.PathLike) -> dict[str, _Version]:
    """Return what the bucket has at a key or below it: name with the bucket's -> version."""
    there = {}
    for name, info in client.find(key, detail=True).items():
        if info["type"] != "file" or name.endswith("/"):
            continue  # what marks a folder
        if any(part in ("", ".", "..") or "\0" in part for part in name.split("/")):
            raise Refused(
                f"{path} has an object called {name!r}, expected names that are paths of files; "
                "rename it."
            )
        content = next((info[it] for it in ("generation", "etag", "ETag") if info.get(it)), "")
        there[name] = (int(info["size"]), str(content))
    return there


def _stale(root: Path, there: Mapping[str, _Version]) -> dict[str, _Version]:
    """Return what is not copied yet, or is of another version."""
    stale, copied = dict[str, _Version](), dict[Path, dict[str, Any]]()
    for name, version in there.items():
        file = root / name
        if file.parent not in copied:
            copied[file.parent] = _versions(root, file.parent)
        if copied[file.parent].get(file.name) != list(version) or not file.is_file():
            stale[name] = version
    return stale


def _note(root: Path, folder: Path) -> Path:
    return root.with_name("versions") / folder.relative_to(root) / _VERSIONS


def _versions(root: Path, folder: Path) -> dict[str, Any]:
    """Return which version of each file of a folder is copied."""
    try:
        found = json.loads(_note(root, folder).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_room(path: str | os.PathLike, root: Path, stale: Mapping[str, _Version]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    needed, free = sum(size for size, _ in stale.values()), shutil.disk_usage(root).free
    if free < needed:
        raise Refused(
            f"{path} has {needed / 1e6:,.0f} MB, expected at most the {free / 1e6:,.0f} MB free at "
            f"{root}, where it is copied to; free some, or set XDG_CACHE_HOME to another disk."
        )


def _copy(client: Any, root: Path, wanted: Mapping[str, _Version], path: str | os.PathLike) -> None:
    """Copy some files, each whole or not at all, then note their versions."""
    with room_for(root), scratch_folder("copied", root) as scratch:
        files = {name: scratch / str(i) for i, name in enumerate(wanted)}
        with reaching(path):
            client.get(list(files), [str(file) for file in files.values()])
        folders: dict[Path, dict[str, Any]] = {}
        for name, file in files.items():
            size, _ = wanted[name]
            if file.stat().st_size != size:
                raise OSError(
                    f"{name} changed while it was copied, expected {size} bytes; try again."
                )
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
            folders.setdefault(target.parent, {})[target.name] = list(wanted[name])
    for folder, versions in folders.items():
        note = _note(root, folder)
        note.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(note) as partial:
            partial.write_text(json.dumps(_versions(root, folder) | versions))


def _remove_others(root: Path, folder: Path, names: set[str]) -> None:
    for file in folder.rglob("*"):
        if file.is_file() and file.relative_to(root).as_posix() not in names:
            file.unlink(missing_ok=True)
