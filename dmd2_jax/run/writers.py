"""Where a run's metrics and pictures go: files always, TensorBoard, CLU and W&B on request.

metrics.jsonl holds what is a function of config, seed and data; speed.jsonl what the clock says.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dmd2_jax.config.refused import Refused, pip_install
from dmd2_jax.run.metrics import MetricsWriter, plain_value
from dmd2_jax.runtime.closing import Closing
from dmd2_jax.runtime.distributed import is_first
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import in_bucket, make_folder, path_of
from dmd2_jax.runtime.platform import user_cache
from dmd2_jax.runtime.summaries import Histogram, histogram_edges

__all__ = ["Writers", "check_writers"]

_NEEDS: dict[str, tuple[tuple[str, ...], Callable[[], str]]] = {
    "tensorboard": (("tensorboardX",), functools.partial(pip_install, "tensorboard")),
    "clu": (("clu", "tensorflow"), functools.partial(pip_install, "clu")),
    "wandb_project": (("wandb",), lambda: "pip install wandb"),
}


class _Board(Protocol):
    """A display of metrics beside the files."""

    def write(self, step: int, scalars: dict[str, float], histograms: dict[str, Any]) -> None: ...

    def images(self, step: int, pictures: Mapping[str, Path]) -> None: ...

    def close(self) -> None: ...


def check_writers(log: Mapping[str, Any]) -> None:
    """Refuse a log config that asks for writers which are not installed.

    Args:
      log: `config.log`; its `tensorboard`, `clu` and `wandb_project` count.

    Raises:
      ValueError: naming what to install.
    """
    for key, (modules, remedy) in _NEEDS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if log.get(key) and missing:
            raise Refused(
                f"log.{key}={log[key]!r} needs {' and '.join(modules)}, expected all installed but "
                f"{' and '.join(missing)} cannot be imported; run `{remedy()}`, or leave log.{key} "
                f"away."
            )


class Writers(Closing):
    """All writers of one run; of several processes, the first one writes.

    Example:
      with Writers(workdir, resumed_step=0, log=config.log) as writers:
          writers.write(10, {"loss": 0.5})
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        resumed_step: int = 0,
        log: Mapping[str, Any] | None = None,
        rows: int | None = None,
        rows_digest: str | None = None,
    ) -> None:
        """Open the files, and the displays that `log` (see `check_writers`) asks for.

        Args:
          workdir: the run folder.
          resumed_step: what was written for later steps is dropped.
          log: `config.log`.
          rows, rows_digest: the `record` of that step; None: not known.
        """
        workdir, log = path_of(workdir), log or {}
        self._boards: list[_Board] = []
        self._metrics = self._speed = None
        if not is_first():
            return
        self._metrics = MetricsWriter(workdir, resumed_step, rows=rows, rows_digest=rows_digest)
        self._speed = MetricsWriter(workdir, resumed_step, "speed.jsonl")
        if log.get("tensorboard"):
            self._boards.append(_TensorBoard(workdir / "tensorboard"))
        if log.get("clu"):
            self._boards.append(_Clu(workdir / "clu"))
        if log.get("wandb_project"):
            self._boards.append(_WeightsAndBiases(workdir, log["wandb_project"]))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write what is a function of config, seed and data; see `MetricsWriter.write`."""
        if self._metrics is not None:
            self._metrics.write(step, metrics)
        self._show(step, metrics)

    def speed(self, step: int, figures: Mapping[str, float]) -> None:
        """Write what the clock says; nothing if there are no figures."""
        if figures and self._speed is not None:
            self._speed.write(step, figures)
            self._show(step, {f"speed/{name}": value for name, value in figures.items()})

    def images(self, step: int, pictures: Mapping[str, Path] | None) -> None:
        """Show pictures.

        Args:
          step: steps taken so far.
          pictures: name -> a file that PIL reads.
        """
        for board in self._boards:
            board.images(step, pictures or {})

    @property
    def record(self) -> dict[str, int | str]:
        """How many rows the metrics have and their digest; {} in a process that writes none."""
        if self._metrics is None:
            return {}
        return {"rows": self._metrics.rows, "rows_digest": self._metrics.rows_digest}

    def sync(self) -> None:
        """Have the lines of both files where they are to be; see `MetricsWriter.sync`."""
        for file in (self._metrics, self._speed):
            if file is not None:
                file.sync()

    def close(self) -> None:
        """Close all."""
        with contextlib.ExitStack() as stack:  # one that fails does not keep the others open
            for file in (self._metrics, self._speed):
                if file is not None:
                    stack.callback(file.close)
            for board in self._boards:
                stack.callback(board.close)

    def _show(self, step: int, metrics: Mapping[str, Any]) -> None:
        if not self._boards:
            return
        histograms = {k: np.asarray(v.counts) for k, v in metrics.items() if _is_histogram(v)}
        scalars = dict(_scalars({k: v for k, v in metrics.items() if not _is_histogram(v)}))
        for board in self._boards:
            board.write(step, scalars, histograms)


class _TensorBoard:
    """Event files."""

    def __init__(self, folder: Path) -> None:
        self._writer = importlib.import_module("tensorboardX").SummaryWriter(str(folder))

    def write(self, step: int, scalars: dict[str, float], histograms: dict[str, Any]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        for name, counts in histograms.items():
            if counts.any():
                self._writer.add_histogram_raw(name, **_buckets(counts), global_step=step)
        self._writer.flush()

    def images(self, step: int, pictures: Mapping[str, Path]) -> None:
        for name, path in pictures.items():
            self._writer.add_image(name, _pixels(path), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Clu:
    """CLU's writer: event files by TensorFlow, and whatever else CLU writes where it runs."""

    def __init__(self, folder: Path) -> None:
        tensorflow = importlib.import_module("tensorflow")
        # It would take the GPUs' memory, though it only writes files.
        tensorflow.config.experimental.set_visible_devices([], "GPU")
        writers = importlib.import_module("clu.metric_writers")
        self._writer = writers.create_default_writer(str(folder))

    def write(self, step: int, scalars: dict[str, float], histograms: dict[str, Any]) -> None:
        if scalars:
            self._writer.write_scalars(step, scalars)
        shown = {name: _values(counts) for name, counts in histograms.items() if counts.any()}
        if shown:
            arrays = {name: values for name, (values, _) in shown.items()}
            self._writer.write_histograms(step, arrays, {name: n for name, (_, n) in shown.items()})
        self._writer.flush()

    def images(self, step: int, pictures: Mapping[str, Path]) -> None:
        if pictures:
            self._writer.write_images(step, {n: _pixels(p)[None] for n, p in pictures.items()})
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run on Weights & Biases, found again by the id in the run folder.

    WANDB_MODE=offline (and every other of its environment variables) works as it does everywhere.
    """

    def __init__(self, workdir: Path, project: str) -> None:
        self._wandb = importlib.import_module("wandb")
        name = workdir / "wandb_id.txt"
        if not name.exists():
            name.write_text(uuid.uuid4().hex[:12])
        record = workdir / "config.json"
        folder = user_cache() / "wandb" if in_bucket(workdir) else workdir
        make_folder(folder)
        self._run = self._wandb.init(
            project=project,
            name=workdir.name,
            id=name.read_text().strip(),
            resume="allow",
            dir=str(folder),
            config=json.loads(record.read_text()) if record.exists() else {},
        )

    def write(self, step: int, scalars: dict[str, float], histograms: dict[str, Any]) -> None:
        shown = {
            name: self._wandb.Histogram(np_histogram=(counts, histogram_edges(len(counts))))
            for name, counts in histograms.items()
        }
        self._run.log(scalars | shown, step=step)

    def images(self, step: int, pictures: Mapping[str, Path]) -> None:
        if pictures:
            shown = {name: self._wandb.Image(str(fetched(path))) for name, path in pictures.items()}
            self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(fetched(path)).convert("RGB"))


def _is_histogram(value: Any) -> bool:
    return isinstance(value, Histogram)


def _scalars(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of metrics; entry i of a list is called NAME/i."""
    for name, value in metrics.items():
        plain = plain_value(value)
        entries = (
            {f"{name}/{i}": entry for i, entry in enumerate(plain)}
            if isinstance(plain, list)
            else {name: plain}
        )
        yield from ((key, float(entry)) for key, entry in entries.items() if entry is not None)


def _buckets(counts: np.ndarray) -> dict[str, Any]:
    """Return a histogram in the words of an event file; its sums take the middle of each bin.

    Its ends are those of the outermost bins that hold something: TensorBoard drops those beyond.
    """
    edges, full = histogram_edges(len(counts)), np.flatnonzero(counts)
    middles = 0.5 * (edges[1:] + edges[:-1])
    return {
        "min": edges[full[0]],
        "max": edges[full[-1] + 1],
        "num": counts.sum(),
        "sum": counts @ middles,
        "sum_squares": counts @ middles**2,
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": counts.tolist(),
    }


def _values(counts: np.ndarray) -> tuple[np.ndarray, int]:
    """Return values whose histogram in so many equal buckets has these counts, and that number.

    CLU takes values and counts them itself, from the least to the largest: those stand at the ends
    of the outermost bins that hold something, the others in the middle of theirs.
    """
    edges, full = histogram_edges(len(counts)), np.flatnonzero(counts)
    first, last = full[0], full[-1]
    places = 0.5 * (edges[1:] + edges[:-1])
    if first < last:
        places[first], places[last] = edges[first], edges[last + 1]
    return np.repeat(places, counts), int(last - first + 1)
