"""What a run folder holds for the report, read without trusting any of it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmd2_jax.commands.report.markup import number
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.recipe.classes import read_record
from dmd2_jax.run.folder import COMPARED, read_run
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import in_bucket, path_of

__all__ = ["MOST_RUNS", "ReportError", "Run", "Series", "flat", "read_runs"]

MOST_RUNS = 8
"""Runs that one page compares: more have no colours, nor room."""

_GRID = re.compile(r"grid_(\d{1,18})\.png")

Series = tuple[np.ndarray, np.ndarray]
"""Steps [n] and finite values [n] there."""


class ReportError(Refused):
    """No report can be made of this."""


class Run(NamedTuple):
    """One run folder.

    Attributes:
      name: the folder's, made unlike the others'.
      command: what made the run.
      config: dotted keys -> plain values.
      changes: what resumptions changed in it, as config.json has it.
      length: steps that the config asks for; None if it does not say.
      rows, speed: of metrics.jsonl and speed.jsonl; [] where there is none.
      figures: of metrics.json; {} where there is none.
      grids: step -> file of the sample grid.
      devices: what it ran on, from which step on, as config.json has it.
      compared: the picture of real, teacher's and student's images; None: there is none.
      classes: names of the classes in the order of their numbers; (): none are recorded.
    """

    name: str
    command: str
    config: dict[str, Any]
    changes: list[Any]
    length: float | None
    rows: list[dict[str, Any]]
    speed: list[dict[str, Any]]
    figures: dict[str, Any]
    grids: dict[int, Path]
    classes: tuple[str, ...] = ()
    devices: tuple[dict[str, Any], ...] = ()
    compared: Path | None = None

    @property
    def unit(self) -> str:
        """What a step is called."""
        return "step" if self.command == "train-teacher" else "cycle"

    @property
    def last(self) -> float | None:
        """The last step that was reported."""
        return self.rows[-1]["step"] if self.rows else None


def read_runs(workdirs: Sequence[str]) -> list[Run]:
    """Read the run folders.

    Raises:
      ReportError: if there are too many, one twice, or a file in one is damaged.
      RunFolderError: if one holds no run.
    """
    if not 1 <= len(workdirs) <= MOST_RUNS:
        raise ReportError(
            f"got {len(workdirs)} of --workdir, expected 1 to {MOST_RUNS} runs on one page; "
            "write several pages."
        )
    folders = [path_of(it) if in_bucket(it) else Path(it).resolve() for it in workdirs]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise ReportError(
                f"--workdir={workdirs[place]} is given twice, expected each run once; leave one "
                "away."
            )
    return [
        _read(name, workdir) for name, workdir in zip(_names(folders), workdirs, strict=True)
    ]  # fmt: skip


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """Name each folder by as few of its last parts as tell it from the others."""
    for depth in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(name: str, workdir: str) -> Run:
    folder = path_of(workdir)
    command, nested = read_run(folder)
    record = _object(folder / "config.json")
    if not isinstance(nested, Mapping) or not isinstance(command, str):
        raise _damaged(folder / "config.json", "config is no object, or command no text")
    config = flat(nested)
    changes = record.get("changes", [])
    key = "teacher.steps" if command == "train-teacher" else "distill.cycles"
    return Run(
        name=name,
        command=command,
        config=config,
        changes=changes if isinstance(changes, list) else [],
        length=number(config.get(key)),
        rows=_rows(folder / "metrics.jsonl"),
        speed=_rows(folder / "speed.jsonl"),
        figures=_object(folder / "metrics.json"),
        grids=_grids(folder),
        classes=_classes(folder),
        devices=_devices(record),
        compared=_picture(folder / COMPARED),
    )


def _devices(record: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    entries = record.get("devices")
    found = entries if isinstance(entries, list) else []
    return tuple(entry for entry in found if isinstance(entry, dict))


def _classes(folder: Path) -> tuple[str, ...]:
    record = read_record(folder)
    return () if record is None or record.class_names is None else record.class_names


def _object(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; {} if it is not there."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict):
        raise _damaged(path, f"it holds a {type(value).__name__}")
    return value


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a .jsonl, each with a number as "step"; [] if it is not there."""
    try:
        rows = read_metrics(path)
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error
    for line, row in enumerate(rows, 1):
        if not isinstance(row, dict) or number(row.get("step")) is None:
            raise _damaged(path, f"line {line} is no object with a number as step")
    return rows


def _damaged(path: Path, what: object) -> ReportError:
    return ReportError(
        f"{path} cannot be read ({what}), expected what dmd2 wrote; restore it from a copy, or "
        "remove it for a page without it."
    )


def _grids(folder: Path) -> dict[int, Path]:
    """Find the sample grids."""
    found = {}
    for path in folder.iterdir():
        match = _GRID.fullmatch(path.name)
        if match and (picture := _picture(path)):
            found[int(match[1])] = picture
    return dict(sorted(found.items()))


def _picture(path: Path) -> Path | None:
    """Return a picture of the folder; no link, as it could show what lies elsewhere."""
    own = path.is_file() and (in_bucket(path) or not path.is_symlink())
    return fetched(path) if own else None
