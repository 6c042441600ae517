"""The paths in a run's config: recorded so that they mean the same from anywhere, and found again.

`config.json` has them absolute, and where the run folder itself was ("place"). A path that is gone
is looked for as far from the run folder as it was then, so that folders may move together. Earlier
releases recorded paths as they were typed: those are looked for in the working directory, and then
in the folders that the run folder is in, the nearest first.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.runtime.distributed import say_once

__all__ = ["PUBLISHED", "found_again", "recorded"]

PUBLISHED = "published:"
"""Before the name of a published shape in a record, where a folder could have that name too."""

_PIPELINE = "model.pipeline"
_PATHS = (
    "data.path",
    "data.prompts",
    "distill.pairs",
    "distill.start_from",
    "model.vae",
    "teacher.lora",
    "teacher.weights",
    _PIPELINE,
)


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config whose paths to what there is are absolute.

    Args:
      config: nested plain values.
    """

    def absolute(key: str, value: str) -> str:
        path, end = _split(key, value)
        if _is_there(key, path):
            return f"{_absolute(path)}{end}"
        bare = key == _PIPELINE and len(path.parts) == 1 and not value.startswith(PUBLISHED)
        return PUBLISHED + value if bare else value

    return _changed(config, absolute)


def found_again(config: Mapping[str, Any], workdir: Path, place: str | None) -> dict[str, Any]:
    """Return a recorded config whose paths lead to where things are now, as far as they are found.

    Args:
      config: nested plain values, as `recorded` or an earlier release made them.
      workdir: the run folder.
      place: where it was when that was recorded; None: not known.
    """
    workdir = workdir.absolute()

    def find(key: str, value: str) -> str:
        path, end = _split(key, value)
        if place is not None and not path.is_absolute():
            return value  # nothing was there
        if path.is_absolute() and path.exists():
            return value
        for candidate in _candidates(path, workdir, place):
            if _is_there(key, candidate):
                if path.is_absolute() or candidate != _absolute(path):
                    say_once(f"{workdir}: its {key}={value} is found at {candidate}.")
                return f"{candidate}{end}"
        return value

    return _changed(config, find)


def _candidates(path: Path, workdir: Path, place: str | None) -> Iterator[Path]:
    if path.is_absolute():
        if place is not None:
            yield Path(os.path.normpath(workdir / os.path.relpath(path, place)))
        return
    yield _absolute(path)
    yield from (parent / path for parent in workdir.parents)


def _changed(config: Mapping[str, Any], change: Any) -> dict[str, Any]:
    """Return a config in which `change(key, value)` takes the place of every path."""
    changed = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()
    }
    for key in _PATHS:
        group, _, name = key.partition(".")
        values = changed.get(group)
        value = values.get(name) if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(value, str) and value and "://" not in value:
            values[name] = change(key, value)
    return changed


def _split(key: str, value: str) -> tuple[Path, str]:
    """Return (the path, what follows it): RUN@CYCLE of `distill.start_from`."""
    folder, at, cycle = value.rpartition("@")
    if key == "distill.start_from" and at and cycle.isdecimal() and not Path(value).is_dir():
        return Path(folder).expanduser(), at + cycle
    return Path(value).expanduser(), ""


def _absolute(path: Path) -> Path:
    """Return a path from the root, without `..` where that leads to the same place."""
    long = path.absolute()
    short = Path(os.path.normpath(long))  # wrong behind a link to a folder
    return short if short.exists() and short.samefile(long) else long


def _is_there(key: str, path: Path) -> bool:
    if key != _PIPELINE:
        return path.exists()
    parts = ("unet", "transformer")
    return any((path / part).is_dir() for part in parts) or (path / "model_index.json").is_file()
