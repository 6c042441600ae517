"""The benchmark of FID, at a size of milliseconds: it times what the command computes."""

import json
import sys

import numpy as np
import pytest

from benchmarks import fid as benchmark
from dmd2_jax.metrics.features.blocks import BLOCKS
from dmd2_jax.metrics.features.moments import feature_statistics


def test_run_gives_time_and_memory_of_every_metric():
    figures = benchmark.run(60, 8, ["kid"])
    assert list(figures) == [
        *("fid seconds", "fid processor seconds", "kid seconds", "kid processor seconds"),
        "peak GB",
    ]
    assert all(figures[f"{name} seconds"] > 0 for name in ("fid", "kid"))
    assert 0.01 < figures["peak GB"] < 100  # this process's own, in GB and no other unit


def test_collect_streams_the_features_that_it_makes(monkeypatch):
    monkeypatch.setattr(benchmark, "_BATCH", 16)
    made, spent = benchmark.collect(50, 8, 1, True, BLOCKS)
    assert made.features.shape == (50, 8)
    expected = feature_statistics(np.concatenate(list(benchmark.batches(50, 8, 1))))
    np.testing.assert_allclose(made.statistics.covariance, expected.covariance, rtol=1e-9)
    assert sum(block.count for block in made.blocks) == 50
    assert spent[0] > 0


def test_main_says_which_targets_are_reached(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "TARGETS", {"fid seconds": 60.0, "peak GB": 1e-6})
    file = tmp_path / "fid.json"
    monkeypatch.setattr(sys, "argv", ["fid", "--samples=60", "--dimension=8", f"--json={file}"])
    benchmark.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-1] for row in rows if row[:2] in (["fid", "seconds"], ["peak", "GB"])] == [
        "yes",
        "no",
    ]
    assert json.loads(file.read_text())["fid seconds"] == pytest.approx(
        float(next(row[2] for row in rows if row[:2] == ["fid", "seconds"])), abs=0.006
    )
