"""What the page shows of a run, while it goes on."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.commands.serve.live import Live
from tests.tiny import student_run, teacher_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run as it is after two of its four cycles."""
    folder = tmp_path / "run"
    there = shutil.ignore_patterns("checkpoints", "*.safetensors", "grid_*", "curves.png")
    shutil.copytree(student_run(), folder, ignore=there)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))
    return folder


def pixels(picture: bytes | None) -> np.ndarray:
    assert picture is not None
    return np.asarray(Image.open(io.BytesIO(picture)))


def test_finished_run_is_said_to_be() -> None:
    seen = Live(str(student_run())).look()
    assert seen.words == "distill, tiny, cycle 4 of 4, finished"
    assert seen.grid_words.startswith("Samples after cycle 4")
    assert "step 6 of 6, finished" in Live(str(teacher_run())).look().words


def test_run_that_goes_on_says_how_far_it_is_and_how_fast(run: Path) -> None:
    os.utime(run / "metrics.jsonl", (1, 1))
    words = Live(str(run)).look().words
    assert words.startswith("distill, tiny, cycle 2 of 4, ")
    assert " s a cycle, last report " in words and words.endswith(" days ago")


def test_new_grids_and_reports_are_seen(run: Path) -> None:
    live = Live(str(run))
    first = live.look()
    assert first.grid is None and "no samples yet" in first.grid_words
    assert live.look().version == first.version and live.look().curves is first.curves
    shutil.copy(student_run() / "grid_0000004.png", run / "grid_0000002.png")
    second = live.look()
    assert "after cycle 2," in second.grid_words and second.version != first.version
    there = np.asarray(Image.open(student_run() / "grid_0000004.png").convert("RGB"))
    np.testing.assert_array_equal(pixels(second.grid), there)
    shutil.copy(student_run() / "metrics.jsonl", run / "metrics.jsonl")
    third = live.look()
    assert "finished" in third.words
    assert np.any(pixels(third.curves) != pixels(second.curves))


def test_run_that_has_reported_nothing_has_no_curves(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    seen = Live(str(run)).look()
    assert seen.words == "distill, tiny, no report yet"
    assert seen.curves is None and seen.curves_words == "Nothing is reported yet."


def test_damaged_files_are_said(run: Path) -> None:
    (run / "grid_0000002.png").write_bytes(b"\x89PNG half")
    (run / "metrics.jsonl").write_text(json.dumps(["no", "report"]) + "\n")
    seen = Live(str(run)).look()
    assert seen.grid is None
    assert seen.grid_words == "grid_0000002.png cannot be shown: no whole PNG."
    assert seen.curves is None and "no object with a number as step" in seen.curves_words


def test_grid_that_is_a_link_is_not_followed(run: Path) -> None:
    (run / "grid_0000003.png").symlink_to(student_run() / "grid_0000004.png")
    assert Live(str(run)).look().grid is None
