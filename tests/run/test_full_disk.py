"""A full disk: every kind of file says which it was, what helps, and is whole or as it was."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.data.reading.files import Files
from dmd2_jax.metrics.features.moments import feature_statistics
from dmd2_jax.metrics.features.reference import write_statistics
from dmd2_jax.pictures.curves import loss_curves
from dmd2_jax.pictures.grids import animate, image_grid
from dmd2_jax.recipe.data_files import write_files
from dmd2_jax.run.folder import write_json
from dmd2_jax.run.metrics import MetricsWriter
from dmd2_jax.runtime.whole_file import NoRoom
from dmd2_jax.sampling import files as samples
from dmd2_jax.weights.state_dict import write_safetensors
from tests.tiny import contents

IMAGES = np.zeros((4, 8, 8, 1), np.uint8)


def _metrics(path: Path) -> None:
    with MetricsWriter(path.parent, name=path.name) as writer:
        writer.write(1, {"loss": 1.0})
        writer.sync()


def _curves(path: Path) -> None:
    loss_curves([{"step": i, "loss": 1.0 / i} for i in (1, 2)], path, x_label="step")


def _animation(path: Path) -> None:
    grid = path.with_name("frame.png")
    grid.write_bytes(samples.encode_png(IMAGES[0]))
    animate([grid, grid], path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "weights.safetensors": lambda path: write_safetensors({"a": np.ones(3, np.float32)}, path),
    "statistics.npz": lambda path: write_statistics(
        feature_statistics(np.random.default_rng(0).random((9, 2))), "pixels", path
    ),
    "grid.png": lambda path: image_grid(IMAGES, path, rows=2, cols=2),
    "curves.png": _curves,
    "progress.gif": _animation,
    "config.json": lambda path: write_json(path, {"seed": 0}),
    "metrics.jsonl": _metrics,
    "data_files.json.gz": lambda path: write_files(path.parent, Files(("a",), (1,))),
    "00000/img00000000.png": lambda path: samples._write(path, IMAGES[0]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_said_by_every_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    WRITERS[name](tmp_path / name)  # where there is room
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(NoRoom, match=rf"{name} cannot be written \(No space.*free some"):
        WRITERS[name](tmp_path / name)
    kept = {file: content for file, content in contents(tmp_path).items() if file in before}
    if name != "metrics.jsonl":  # which grows by a line that the disk may yet take
        assert kept == before
