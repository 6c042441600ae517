"""Paths in a run's config: absolute when recorded, and found again."""

from pathlib import Path
from typing import Any

import pytest

from dmd2_jax.run.folder import open_run, read_run
from dmd2_jax.run.places import found_again, recorded


def config(**values: str) -> dict[str, Any]:
    groups: dict[str, Any] = {"name": "x"}
    for key, value in values.items():
        group, _, name = key.partition("__")
        groups.setdefault(group, {})[name] = value
    return groups


def test_recorded_makes_paths_to_what_is_there_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "start", "sdxl", "sd15/unet", "@5"):
        (tmp_path / name).mkdir(parents=True)
    values = {
        "teacher__weights": "teacher",
        "data__path": "gone",
        "data__prompts": "gs://b/teacher",
    }
    given = config(**values, distill__start_from="start@40", model__pipeline="sd15")
    made = recorded(given)
    assert made["teacher"]["weights"] == str(tmp_path / "teacher")
    assert made["data"] == {"path": "gone", "prompts": "gs://b/teacher"}
    assert made["distill"]["start_from"] == f"{tmp_path / 'start'}@40"
    assert made["model"]["pipeline"] == str(tmp_path / "sd15")
    assert given["teacher"]["weights"] == "teacher"
    # A folder that is no pipeline does not take the name of the published shapes.
    assert recorded(config(model__pipeline="sdxl")) == config(model__pipeline="published:sdxl")
    assert recorded(config(distill__start_from="@5"))["distill"]["start_from"] == str(
        tmp_path / "@5"
    )


def test_run_finds_its_paths_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    open_run("runs/student", "distill", config(teacher__weights="runs/teacher"))
    (tmp_path / "else/runs/teacher").mkdir(parents=True)  # another one
    monkeypatch.chdir(tmp_path / "else")
    assert (
        read_run(tmp_path / "runs/student")[1]["teacher"]["weights"] == f"{tmp_path}/runs/teacher"
    )


def test_run_that_moved_with_its_teacher_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a/runs/teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    open_run("runs/student", "distill", config(teacher__weights="runs/teacher"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    found = read_run("b/runs/student")[1]["teacher"]["weights"]
    assert found == f"{tmp_path}/b/runs/teacher"
    assert f"is found at {found}" in capsys.readouterr().err


def test_resuming_from_elsewhere_is_no_other_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "start").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_run("run", "distill", config(distill__start_from="start")) is False
    monkeypatch.chdir(tmp_path / "start")
    assert open_run("../run", "distill", config(distill__start_from="../start/../start")) is True


def test_paths_as_earlier_releases_recorded_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the working directory first, then in the folders around the run."""
    for name in ("a/runs/teacher", "b/runs/teacher", "c"):
        (tmp_path / name).mkdir(parents=True)
    old, run = config(teacher__weights="runs/teacher"), tmp_path / "a/runs/student"
    for here, there in (("a", "a"), ("b", "b"), ("c", "a")):
        monkeypatch.chdir(tmp_path / here)
        found = found_again(old, run, None)["teacher"]["weights"]
        assert found == f"{tmp_path}/{there}/runs/teacher"
    assert found_again(config(teacher__weights="no"), run, None) == config(teacher__weights="no")
