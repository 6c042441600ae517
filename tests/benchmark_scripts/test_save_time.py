"""The benchmark of saves by two checkouts, at a size of kilobytes."""

import sys
from pathlib import Path

import pytest

from benchmarks import save_time as benchmark


def test_main_compares_a_checkout_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def saves(tree: Path, folder: str, megabytes: float, *counts: int) -> list[list[float]]:
        now = tree == benchmark.ROOT
        return [[3.0 if now else 2.0, 0.5, 0.5, 0.25][: 4 if counts[1] == 1 else 3]] * counts[0]

    monkeypatch.setattr(benchmark, "saves", saves)
    monkeypatch.setattr(sys, "argv", ["save_time", f"--before={tmp_path}"])
    benchmark.main()
    rows = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["ratio", "1.50", "1.00", "1.00", "1.00"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--processes=2"])
    benchmark.main()
    rows = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["ratio", "1.50", "1.00", "1.00"]


def test_saves_times_the_package_of_a_checkout(tmp_path: Path) -> None:
    ((saved, waited, worked, weights),) = benchmark.saves(benchmark.ROOT, str(tmp_path), 0.1, 1)
    assert saved > waited > 0 and worked > 0 and weights > 0
    assert list(tmp_path.iterdir()) == []


def test_saves_of_two_processes_are_timed_as_those_of_one_run(tmp_path: Path) -> None:
    ((saved, waited, worked),) = benchmark.saves(benchmark.ROOT, str(tmp_path), 0.1, 1, 2)
    assert saved > waited > 0 and worked > 0
    assert list(tmp_path.iterdir()) == []
