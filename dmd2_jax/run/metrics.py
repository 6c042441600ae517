"""The files of one JSON object a report, each flushed as it is written; the progress display."""

import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import refuse_special
from dmd2_jax.run.display import Display, Look, can_display, clock
from dmd2_jax.runtime.closing import Closing
from dmd2_jax.runtime.distributed import is_first
from dmd2_jax.runtime.places import in_bucket, path_of
from dmd2_jax.runtime.summaries import Average, Histogram
from dmd2_jax.runtime.whole_file import room_for, whole_file

__all__ = ["METRICS", "MetricsWriter", "Progress", "plain_value", "read_metrics", "reported"]


_log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
"""The file of a run folder that holds its reports."""


_UPLOAD_SECONDS = 30.0
"""Between two uploads of a growing file to a bucket."""


class _Growing(Closing):
    """A text file of a bucket, which cannot be appended to: uploaded whole as it grows.

    A kill loses what came after the last upload.
    """

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._lines = path, [text]
        self._uploaded = time.monotonic()
        self._changed = False

    def write(self, text: str) -> None:
        self._lines.append(text)
        self._changed = True

    def flush(self) -> None:
        if time.monotonic() - self._uploaded >= _UPLOAD_SECONDS:
            self.sync()

    def sync(self) -> None:
        if self._changed:
            with whole_file(self._path) as partial:
                partial.write_text("".join(self._lines))
            self._uploaded, self._changed = time.monotonic(), False

    def close(self) -> None:
        self.sync()


class MetricsWriter(Closing):
    """Append one JSON object a line to `metrics.jsonl`, each flushed as it is written.

    Opening drops the lines beyond `resumed_step` (they belong to work that will be done again)
    and a last line cut short by a kill, so that a resumed file equals an uninterrupted one; and it
    puts lines in the order of their steps, each once. Lines that are damaged, gone or altered end
    no run: how many are lost, or that they are others, is said. In a bucket lines are uploaded
    every half a minute, and by `sync`.
    """

    def __init__(
        self,
        workdir: str | Path,
        resumed_step: int = 0,
        name: str = METRICS,
        rows: int | None = None,
        rows_digest: str | None = None,
    ) -> None:
        """Open WORKDIR/`name` for the steps after `resumed_step`.

        Args:
          workdir: the run folder.
          resumed_step: see the class.
          name: of the file.
          rows: how many it had up to that step; None: not known.
          rows_digest: the `rows_digest` that it had then; None: not known.
        """
        self.path = path_of(workdir) / name
        kept = _sound_rows(self.path, resumed_step)
        text = "".join(json.dumps(row) + "\n" for row in kept)
        self.rows, self._digest = len(kept), hashlib.blake2b(text.encode(), digest_size=16)
        if rows is not None and len(kept) < rows:
            _log.warning(
                "%s: %d rows are lost, of the %d up to step %d; the run goes on without them.",
                self.path,
                rows - len(kept),
                rows,
                resumed_step,
            )
        elif rows_digest not in (None, self.rows_digest):
            _log.warning(
                "%s: the %d rows up to step %d are not those that the run wrote, expected them "
                "unchanged; the run goes on with them as they are. Restore the file from a copy.",
                self.path,
                len(kept),
                resumed_step,
            )
        if self.path.exists() or os.path.islink(self.path):  # which is replaced, and not followed
            with whole_file(self.path) as partial:
                partial.write_text(text)
        self._file: TextIO | _Growing = (
            _Growing(self.path, text) if in_bucket(self.path) else self.path.open("a")
        )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line.

        Args:
          step: steps (or cycles) taken so far.
          metrics: numbers, and arrays, which are written as their mean; `Average`s, written as
            total / number, a list if they have a shape, and `Histogram`s, written as the list of
            their counts. What is not finite, or the average of nothing, is written as null.
        """
        row = {"step": int(step)} | {name: plain_value(value) for name, value in metrics.items()}
        line = json.dumps(row, allow_nan=False) + "\n"
        with room_for(self.path):
            self._file.write(line)
            self._file.flush()
        self._digest.update(line.encode())
        self.rows += 1

    @property
    def rows_digest(self) -> str:
        """The digest of all lines so far."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Have all lines where they are to be: a loss of power leaves them there."""
        if isinstance(self._file, _Growing):
            self._file.sync()
        else:
            with room_for(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl, ignoring a last line that was cut short.

    Raises:
      FileNotFoundError: if there is none, as in a bucket before the first report.
    """
    rows = []
    refuse_special(path)
    lines = path_of(path).read_bytes().splitlines()
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines) - 1:
                break
            raise Refused(
                f"line {number + 1} of {path} is not JSON ({error}), expected one object a "
                f"line; remove that line."
            ) from error
    return rows


def reported(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl; none where nothing was reported yet."""
    try:
        return read_metrics(path)
    except FileNotFoundError:
        return []


def _sound_rows(path: Path, last: int) -> list[dict[str, Any]]:
    """Return the rows up to step `last` that can be read as such, by step, the first of each."""
    rows = dict[int, dict[str, Any]]()
    refuse_special(path)
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and row["step"] <= last:
            rows.setdefault(row["step"], row)
    return [rows[step] for step in sorted(rows)]


class Progress(Closing):
    """Show progress: a bar with ETA, images/s and losses, or on no terminal a line now and then.

    Until the first update a clock runs on a terminal. Of several processes the first one shows it.
    """

    def __init__(
        self,
        *,
        total: int,
        initial: int = 0,
        description: str = "",
        images_per_step: int = 1,
        stream: TextIO | None = None,
        seconds_between_lines: float = 10.0,
    ) -> None:
        """Show the display.

        Args:
          total: steps in the whole run.
          initial: steps already taken.
          description: shown in front.
          images_per_step: images a step, for the images/s figure; 0: there is none.
          stream: where to write; standard error by default.
          seconds_between_lines: the quiet time where `stream` is not a terminal.
        """
        self._stream = stream or sys.stderr
        self._total, self._initial, self._done = total, initial, initial
        self._description, self._images = description, images_per_step
        self._every = seconds_between_lines
        self._start: float | None = None  # at the first update: before it lies the compilation
        self._began = self._last_line = self._updated = time.monotonic()
        self._waiting = "starting"
        self._values: dict[str, float] = {}
        shown = is_first() and can_display(self._stream)
        self._display = Display(self._stream, self._look) if shown else None

    def compiling(self) -> None:
        """Say that the next step compiles first."""
        self._began, self._waiting = time.monotonic(), "compiling"
        if self._display is None:
            self._say(f"{self._next_step()}: compiling ...")

    def compiled(self) -> None:
        """Say how long that step took."""
        seconds = time.monotonic() - self._began
        self._say(f"{self._next_step()}: {seconds:.1f} s, compilation included.")

    def update(self, done: int, values: Mapping[str, Any] | None = None) -> None:
        """Report that `done` steps of the whole run are taken.

        Args:
          done: steps taken, counted from the run's beginning.
          values: the latest metrics; arrays are shown by their mean.
        """
        self._done, self._updated = done, time.monotonic()
        if self._start is None:
            self._start, self._initial = self._updated, done
        if values:
            self._values = {name: float(np.mean(value)) for name, value in values.items()}
        if self._display is not None:
            return
        if self._updated - self._last_line >= self._every or done == self._total:
            self._last_line = self._updated
            self._say(", ".join(filter(None, (self._counted(), self._left(), self._postfix()))))

    def close(self) -> None:
        """Leave the display in its last state."""
        if self._display is not None:
            self._display.close()

    def _say(self, line: str) -> None:
        if self._display is not None:
            self._display.say(line)
        elif is_first():
            print(line, file=self._stream, flush=True)

    def _look(self) -> Look:
        below = self._postfix()
        if self._start is None and self._done < self._total:
            below = f"{self._waiting}: {clock(time.monotonic() - self._began)}"
        return Look(self._description, self._done, self._total, self._left(), below)

    def _counted(self) -> str:
        return f"{self._description} {self._done}/{self._total}"

    def _next_step(self) -> str:
        return f"{self._description} {self._done + 1} of {self._total}"

    def _left(self) -> str:
        taken = self._done - self._initial
        if not taken or self._start is None:
            return ""
        left = (self._updated - self._start) / taken * (self._total - self._done)
        return f"ETA {clock(max(0.0, left - (time.monotonic() - self._updated)))}"

    def _postfix(self) -> str:
        shown = [f"{name} {value:.4g}" for name, value in self._values.items()]
        taken = self._done - self._initial
        if taken and self._images and self._start is not None:
            speed = taken * self._images / max(self._updated - self._start, 1e-9)
            shown.insert(0, f"{speed:.3g} images/s")
        return ", ".join(shown)


def plain_value(value: Any) -> Any:
    """Return a metric as JSON has it, by the rule of `MetricsWriter.write`."""
    if isinstance(value, Histogram):
        return np.asarray(value.counts).tolist()
    if isinstance(value, Average):
        pairs = zip(np.ravel(value.total), np.ravel(value.number), strict=True)
        # 0 / 0 is no number, and so null; in float64, as JSON's numbers are.
        means = [plain_value(float(total) / int(n) if n else math.nan) for total, n in pairs]
        return means if np.ndim(value.total) else means[0]
    array = np.asarray(value)
    number = array.item() if array.ndim == 0 else float(array.mean(dtype=np.float64))
    return None if isinstance(number, float) and not math.isfinite(number) else number
