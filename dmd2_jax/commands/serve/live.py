"""A run folder as it is now: how far the run is, its newest grid, its curves."""

import io
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dmd2_jax.config.refused import Refused
from dmd2_jax.pictures.curves import loss_curves
from dmd2_jax.pictures.read import read_png
from dmd2_jax.run.folder import LENGTHS, read_run
from dmd2_jax.run.metrics import METRICS, read_metrics
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import in_bucket, path_of
from dmd2_jax.runtime.whole_file import scratch_folder

__all__ = ["Live", "Seen"]

_SHOWN = (
    *("fid", "class_accuracy", "generator_loss", "critic_loss", "dm_loss", "denoising_loss"),
    *("gan_generator_loss", "gan_critic_loss", "regression_loss", "grad_norm", "lr"),
)
"""What the curves are of, where it is reported."""

_MOST_CURVES = 6
_WIDEST = 1200  # pixels of a picture on the page


class Seen(NamedTuple):
    """What is to be seen of a run.

    Attributes:
      words: how far it is.
      grid: the newest sample grid, a PNG; None: there is none yet.
      grid_words: what it is.
      curves: a PNG; None: nothing is reported yet.
      curves_words: what they are, or why there are none.
      version: changes with the pictures.
    """

    words: str
    grid: bytes | None
    grid_words: str
    curves: bytes | None
    curves_words: str
    version: str


class Live:
    """Looks at a run folder again and again; it is only read, and not trusted."""

    def __init__(self, workdir: str) -> None:
        """Read what does not change.

        Raises:
          Refused: if there is no run.
        """
        self._folder = path_of(workdir)
        self._command, config = read_run(workdir)
        group, key, self._unit = LENGTHS.get(self._command, LENGTHS["distill"])
        self._name = str(config.get("name", ""))[:80]
        self._total = config.get(group, {}).get(key)
        self._lock = threading.Lock()  # pages ask at once, and share what is drawn
        self._kept: tuple[str, Seen] | None = None

    def look(self) -> Seen:
        """Return what is there now; pictures are made anew only where something has changed."""
        with self._lock:
            try:
                rows = _rows(self._folder / METRICS)
                fault = ""
            except (OSError, ValueError) as error:
                rows, fault = [], str(error)
            words, grid = self._words(rows), self._newest_grid()
            version = f"{len(rows)} {rows[-1]['step'] if rows else ''} {grid} {fault}"
            if self._kept is None or self._kept[0] != version:
                self._kept = version, self._draw(rows, grid, fault, version)
            return self._kept[1]._replace(words=words)

    def _words(self, rows: Sequence[Mapping[str, Any]]) -> str:
        parts = [f"{self._command}, {self._name}" if self._name else self._command]
        if not rows:
            return ", ".join([*parts, "no report yet"])
        last, total = rows[-1]["step"], self._total
        parts.append(f"{self._unit} {last:g}{f' of {total:g}' if _is_number(total) else ''}")
        if _is_number(total) and last >= total:
            return ", ".join([*parts, "finished"])
        seconds = _last_number(self._folder / "speed.jsonl", f"seconds_per_{self._unit}")
        if seconds is not None:
            parts.append(f"{seconds:.3g} s a {self._unit}")
        age = max(0.0, time.time() - (self._folder / METRICS).stat().st_mtime)
        return ", ".join([*parts, f"last report {_ago(age)} ago"])

    def _newest_grid(self) -> Path | None:
        """Find the newest sample grid; no link, which could show what lies elsewhere."""
        grids = sorted(self._folder.glob("grid_[0-9]*.png"))
        real = [it for it in grids if in_bucket(it) or not it.is_symlink()]
        return real[-1] if real else None

    def _draw(
        self, rows: Sequence[Mapping[str, Any]], grid: Path | None, fault: str, version: str
    ) -> Seen:
        picture = None if grid is None else _picture(grid)
        grid_words = f"{self._name or self._command} has drawn no samples yet."
        if grid is not None:
            step = grid.stem.removeprefix("grid_").lstrip("0") or "0"
            grid_words = f"Samples after {self._unit} {step[:20]}, of the same noise each time."
            if picture is None:
                grid_words = f"{grid.name} cannot be shown: no whole PNG."
        curves = self._curves(rows)
        curves_words = fault or ("" if curves else "Nothing is reported yet.")
        return Seen("", picture, grid_words, curves, curves_words, version)

    def _curves(self, rows: Sequence[Mapping[str, Any]]) -> bytes | None:
        there = [name for name in _SHOWN if any(_is_number(row.get(name)) for row in rows)]
        shown = there[:_MOST_CURVES]
        points = [
            {name: row[name] for name in ("step", *shown) if _is_number(row.get(name))}
            for row in rows
        ]
        if not shown:
            return None
        with scratch_folder("curves") as scratch:
            path = scratch / "curves.png"
            loss_curves(points, path, x_label=self._unit)
            return path.read_bytes()


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the reports, each with a number as step."""
    try:
        rows = read_metrics(path)
    except FileNotFoundError:
        return []
    if not all(isinstance(row, dict) and _is_number(row.get("step")) for row in rows):
        raise Refused(
            f"{path} has a line that is no object with a number as step, expected what dmd2 "
            "wrote; restore it from a copy."
        )
    return rows


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a chart's arithmetic takes."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100


def _last_number(path: Path, name: str) -> float | None:
    try:
        rows = _rows(path)
    except (OSError, ValueError):
        return None
    value = rows[-1].get(name) if rows else None
    return value if _is_number(value) else None


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{count} {name}{'' if count == 1 else 's'}"
    return f"{int(seconds)} seconds"


def _picture(path: Path) -> bytes | None:
    """Return a PNG decoded and written anew, so that only its pixels get into the page.

    None: it is no whole PNG; it may be half written.
    """
    try:
        image = read_png(fetched(path))
    except OSError:  # a bucket that cannot be reached at the moment
        return None
    if image is None:
        return None
    image.thumbnail((_WIDEST, _WIDEST * 4))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
