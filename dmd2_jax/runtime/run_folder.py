"""A run folder belongs to one config: opened, resumed or refused here."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "RunFolderError",
    "check_free_space",
    "open_run",
    "read_run",
    "write_json",
]

_MISSING = "(absent)"


class RunFolderError(ValueError):
    """A run folder cannot be used for this run."""


def open_run(
    workdir: str | Path,
    command: str,
    config: Mapping[str, Any],
    *,
    may_differ: Iterable[str] = (),
    dry_run: bool = False,
) -> bool:
    """Claim `workdir` for one run, or recognise the run that is there.

    Args:
      workdir: the folder; created if need be.
      command: what makes the run, for example "distill".
      config: nested plain values (JSON).
      may_differ: dotted keys (or prefixes of them) that a resumed run may change, such as its
        length; config.json then takes the new values.
      dry_run: check only, leaving the disk as it was.

    Returns:
      True if the folder already held this run, which is then to be resumed.

    Raises:
      RunFolderError: if the folder cannot be written, or holds a run of another command or
        config. Nothing is written over.
    """
    folder = Path(workdir)
    _check_writable(folder, keep=not dry_run)
    record = {"command": command, "config": _normal(config)}
    resumed = (folder / "config.json").exists()
    if resumed:
        _refuse_another(folder, record, tuple(may_differ))
    elif folder.is_dir() and any((folder / "checkpoints").glob("[0-9]*")):
        raise RunFolderError(
            f"workdir {folder} holds checkpoints and no config.json, expected both or neither; "
            f"choose another --workdir."
        )
    if not dry_run:
        write_json(folder / "config.json", record)
    return resumed


def read_run(workdir: str | Path) -> tuple[str, dict[str, Any]]:
    """Return (command, config) of the run in `workdir`.

    Raises:
      RunFolderError: if there is none, or its config.json cannot be read.
    """
    path = Path(workdir) / "config.json"
    try:
        record = json.loads(path.read_text())
        return record["command"], record["config"]
    except FileNotFoundError as error:
        raise RunFolderError(
            f"no run in workdir {workdir}, expected a config.json there; give the --workdir that "
            f"train-teacher or distill wrote."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path} cannot be read ({error}), expected the record of a run; restore it from a "
            f"copy or choose another --workdir."
        ) from error


def check_free_space(folder: str | Path, needed: int, purpose: str) -> None:
    """Refuse to start where the disk cannot hold what will be written.

    Args:
      folder: any existing folder of the disk, or a path below one.
      needed: bytes.
      purpose: what they are for, named in the error.

    Raises:
      RunFolderError: if fewer bytes are free.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunFolderError(
            f"{free / 1e6:,.0f} MB free at {folder}, expected at least {needed / 1e6:,.0f} MB for "
            f"{purpose}; free some, lower config.log.keep, or choose a --workdir on another disk."
        )


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON so that a reader sees the old file or the new one, never half of one."""
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, target)


def _check_writable(folder: Path, keep: bool) -> None:
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
            f"expected a folder with write permission; choose another --workdir."
        ) from error


def _refuse_another(folder: Path, record: Mapping[str, Any], may_differ: tuple[str, ...]) -> None:
    command, config = read_run(folder)
    if command != record["command"]:
        raise RunFolderError(
            f"workdir {folder} holds a run of `{command}`, expected one of "
            f"`{record['command']}` or an empty folder; choose another --workdir."
        )
    here, there = _flat(record["config"]), _flat(config)
    differing = [
        f"{key}: got {here.get(key, _MISSING)!r}, the run there has {there.get(key, _MISSING)!r}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key, _MISSING) != there.get(key, _MISSING)
        and not any(key == free or key.startswith(free + ".") for free in may_differ)
    ]
    if differing:
        raise RunFolderError(
            f"workdir {folder} holds a run of another config:\n  "
            + "\n  ".join(differing)
            + "\nexpected the same values in order to resume; choose another --workdir, or give "
            "these keys the run's values."
        )


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
