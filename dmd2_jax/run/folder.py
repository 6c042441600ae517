"""A run folder belongs to one config: opened, resumed or refused here."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.config.recorded import completed, translated
from dmd2_jax.run.places import found_again, recorded
from dmd2_jax.run.sealed_config import (
    RunFolderError,
    is_edited,
    new_identity,
    read_config,
    run_identity,
)
from dmd2_jax.runtime.distributed import say
from dmd2_jax.runtime.places import (
    absolute,
    in_bucket,
    make_folder,
    path_of,
    reaching,
)
from dmd2_jax.runtime.seal import SEAL, seal
from dmd2_jax.runtime.whole_file import whole_file

__all__ = [
    "COMPARED",
    "LENGTHS",
    "RunFolderError",
    "check_free_space",
    "check_teacher",
    "check_writable",
    "newest_step",
    "open_run",
    "read_run",
    "write_json",
]

COMPARED = "compared.png"
"""The picture of a run folder that has real images and those of its networks below each other."""

_MISSING = "(absent)"
LENGTHS = {
    "train-teacher": ("teacher", "steps", "step"),
    "distill": ("distill", "cycles", "cycle"),
}
"""Command -> the group and the key of its length, and what is counted."""


def open_run(
    workdir: str | Path,
    command: str,
    config: Mapping[str, Any],
    *,
    may_differ: Iterable[str] = (),
    allow: Iterable[str] = (),
    check: Callable[[], object] | None = None,
    dry_run: bool = False,
    devices: Mapping[str, Any] | None = None,
) -> bool:
    """Claim `workdir` for one run, or recognise the run that is there.

    Args:
      workdir: the folder; created if need be.
      command: what makes the run, for example "distill".
      config: nested plain values (JSON).
      may_differ: dotted keys (or prefixes of them) that a resumed run may change, such as its
        length; config.json then takes the new values.
      allow: dotted keys (or prefixes) that this resumption may change besides. What it does
        change is printed, and stays in config.json under "changes".
      check: called before a resumed run's folder is written to; raises ValueError if what is
        saved there does not fit the config.
      dry_run: check only, leaving the disk as it was.
      devices: what the run takes; config.json lists them under "devices", from which step on.

    Returns:
      True if the folder already held this run, which is then to be resumed.

    Raises:
      RunFolderError: if the folder holds a run of another command or config, or what is saved
        there does not fit. Nothing is written over.
    """
    folder = path_of(workdir)
    record: dict[str, Any] = {
        "command": command,
        "place": str(absolute(folder)),
        "config": recorded(_normal(config)),
        "run": run_identity(folder) or new_identity(),
    }
    resumed = (folder / "config.json").exists()
    used: list[dict[str, Any]] = []
    if resumed:
        changes = _changes(folder, record, tuple(may_differ), tuple(allow), check)
        _check_saved(changes, tuple(allow), check)
        history, used = _listed_in(folder, "changes"), _listed_in(folder, "devices")
        if changes:
            print(f"{folder} goes on with another config:\n  {_listed(changes)}", flush=True)
            history.append({"after_step": newest_step(folder), "changed": changes})
        record |= {"changes": history} if history else {}
    elif folder.is_dir() and any((folder / "checkpoints").glob("[0-9]*")):
        raise RunFolderError(
            f"workdir {folder} holds checkpoints and no config.json, expected both or neither; "
            f"choose another workdir."
        )
    if devices is not None and (not used or used[-1] != {**used[-1], **devices}):
        used.append({"after_step": newest_step(folder) or 0, **devices})
    record |= {"devices": used} if used else {}
    if not dry_run:
        make_folder(folder)
        write_json(folder / "config.json", seal(record))
    return resumed


def check_teacher(before: Mapping[str, str] | None, teacher: Mapping[str, str]) -> None:
    """Refuse to go on with another teacher than a checkpoint was made with.

    Args:
      before: `path` and `digest` of its weights, from the checkpoint; None where it has none.
      teacher: the same of the teacher at hand.

    Raises:
      RunFolderError: if the digests differ. The same weights at another place are fine, and said.
    """
    if before is None or before == teacher:
        return
    if before["digest"] != teacher["digest"]:
        raise RunFolderError(
            f"teacher {teacher['path']} has other weights (digest {teacher['digest']}) than the "
            f"one of the run, {before['path']} (digest {before['digest']}), expected the "
            f"same: a student cannot change its teacher; give the run's "
            f"config.teacher.weights, or choose another workdir."
        )
    if Path(before["path"]).absolute() == Path(teacher["path"]).absolute():
        return
    print(f"the teacher, {before['path']} before, is now {teacher['path']}: the same weights.")


def read_run(workdir: str | Path) -> tuple[str, dict[str, Any]]:
    """Return (command, config) of the run in `workdir`.

    Keys of older releases are today's, and paths lead to where things are (`run.places`).

    Raises:
      RunFolderError: if there is none, or its config.json cannot be read.
    """
    path = path_of(workdir) / "config.json"
    record = read_config(path)
    if is_edited(record):
        say(f'{path} has no "{SEAL}": it was edited, and is taken as it is.')
    command, config = record["command"], translated(record["config"], str(path))
    if not in_bucket(workdir):
        config = found_again(config, Path(workdir), record.get("place"))
    return command, config


def check_free_space(folder: str | Path, needed: int, purpose: str) -> None:
    """Refuse to start where the disk cannot hold what will be written.

    Args:
      folder: any existing folder of the disk, or a path below one; a bucket has room.
      needed: bytes.
      purpose: what they are for, named in the error.

    Raises:
      RunFolderError: if fewer bytes are free.
    """
    if in_bucket(folder):
        return
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunFolderError(
            f"{free / 1e6:,.0f} MB free at {folder}, expected at least {needed / 1e6:,.0f} MB for "
            f"{purpose}; free some, lower config.log.keep, or choose a workdir on another disk."
        )


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON so that a reader sees the old file or the new one, never half of one."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def _check_bucket(folder: Path) -> None:
    """Refuse a place in a bucket that cannot be written to."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        with reaching(folder):
            probe.write_text("")
            probe.unlink()
    except OSError as error:
        raise RunFolderError(f"workdir: {error}") from error


def check_writable(folder: Path, *, keep: bool) -> None:
    """Refuse a run folder that cannot be written to.

    Args:
      folder: it, on this machine or in a bucket.
      keep: make it if it is not there; otherwise the disk is left as it was.

    Raises:
      RunFolderError: if it cannot be written to or created.
    """
    if in_bucket(folder):
        _check_bucket(folder)
        return
    if folder.is_symlink() and not folder.exists():
        raise RunFolderError(
            f"workdir {folder} is a link to {os.readlink(folder)}, which is not there, expected a "
            f"folder; make it, or choose another workdir."
        )
    existed = folder.exists()
    probe = folder
    try:
        if keep:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            while not probe.exists():
                probe = probe.parent
        with tempfile.TemporaryFile(dir=probe):
            pass
    except OSError as error:
        raise RunFolderError(
            f"workdir {folder} cannot be {'written to' if existed else 'created'} ({error}), "
            f"expected a folder with write permission; choose another workdir."
        ) from error


def _changes(
    folder: Path,
    record: Mapping[str, Any],
    may_differ: tuple[str, ...],
    allow: tuple[str, ...],
    check: Callable[[], object] | None,
) -> dict[str, list[Any]]:
    """Return {key: [value there, value here]} of all that differs, if it may."""
    command, config = read_run(folder)
    if command != record["command"]:
        raise RunFolderError(
            f"workdir {folder} holds a run of `{command}`, expected one of "
            f"`{record['command']}` or an empty folder; choose another workdir."
        )
    here, there = _flat(record["config"]), _flat(_normal(completed(config)))
    changes = {
        key: [there.get(key, _MISSING), here.get(key, _MISSING)]
        for key in sorted(here.keys() | there.keys())
        if here.get(key, _MISSING) != there.get(key, _MISSING)
    }
    refused = {key: pair for key, pair in changes.items() if not _named(key, may_differ + allow)}
    if refused:
        # A key that this config has not can be allowed with its group alone.
        names = dict.fromkeys(
            key if key in here else key.rpartition(".")[0] or key for key in refused
        )
        more = f", or allow the change by `allow_change={','.join(names)}`."
        try:
            _check_saved({}, (), check)
        except ValueError as error:  # which allowing them would only lead to
            more = f". allow_change could not grant these: {error}"
        raise RunFolderError(
            f"workdir {folder} holds a run of another config:\n  {_listed(refused)}\n"
            f"expected the same values in order to resume; choose another workdir, or give these "
            f"keys the run's values{more}"
        )
    return changes


def _check_saved(
    changes: Mapping[str, Any], allow: tuple[str, ...], check: Callable[[], object] | None
) -> None:
    try:
        if check is not None:
            check()
    except ValueError as error:
        allowed = [key for key in changes if _named(key, allow)]
        if not allowed:
            raise
        raise RunFolderError(
            f"`allow_change={','.join(allowed)}` cannot be granted: {error}"
        ) from error


def _listed(changes: Mapping[str, list[Any]]) -> str:
    return "\n  ".join(
        f"{key}: got {here!r}, the run there has {there!r}"
        for key, (there, here) in changes.items()
    )


def _named(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _listed_in(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_config(folder / "config.json").get(name, [])


def newest_step(folder: Path) -> int | None:
    """Return the number of a run's newest checkpoint, good or not; None: it has none."""
    names = (entry.name for entry in (folder / "checkpoints").glob("[0-9]*"))
    return max((int(name) for name in names if name.isdecimal()), default=None)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _normal(config: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(config))  # tuples become lists, as they will when read back
