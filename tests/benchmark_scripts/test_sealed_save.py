"""The benchmark of seals, on a state of kilobytes: both kinds write what they say."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import sealed_save as benchmark
from dmd2_jax.run.checkpoint import Checkpoints


def test_run_gives_each_time_with_and_without(tmp_path: Path) -> None:
    figures = benchmark.run(tmp_path, 0.1, 1)
    kinds = [f"{name} {how}" for name in benchmark.NAMES for how in ("with", "without")]
    assert set(figures) == {*kinds, *benchmark.NAMES, "disk MB/s", "BLAKE2b MB/s"}
    assert all(figure > 0 for figure in figures.values())
    assert figures["checkpoint with"] > figures["of it the training waits with"]


def test_only_the_sealed_checkpoint_has_digests(tmp_path: Path) -> None:
    state = benchmark.arrays(0.01)
    for sealed in (True, False):
        benchmark.save(tmp_path / str(sealed), state, sealed)
    with Checkpoints(tmp_path / "True/checkpoints", read_only=True) as checkpoints:
        assert checkpoints.restore(state).step == 1
    entries = json.loads((tmp_path / "False/checkpoints/1/meta/metadata").read_text())["arrays"]
    assert not any("digest" in entry for entry in entries.values())


def test_main_says_which_targets_are_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "save.json"
    monkeypatch.setattr(benchmark, "TARGET", 0.0)
    monkeypatch.setattr(
        sys, "argv", ["sealed_save", "--megabytes=0.1", "--rounds=1", f"--json={file}"]
    )
    benchmark.main()
    rows = capsys.readouterr().out.splitlines()[-len(benchmark.NAMES) :]
    assert all(row.split()[-1] == "no" for row in rows)
    assert json.loads(file.read_text())["checkpoint with"] > 0
