"""Whose weights a run's files are: those of another run or network are not taken for its own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.recipe.exported_weights import check_whose, whose_notes
from dmd2_jax.recipe.weights_file import weights_file
from dmd2_jax.run.exported import write_exported
from dmd2_jax.run.folder import open_run
from dmd2_jax.run.sealed_config import run_identity
from dmd2_jax.weights.state_dict import read_metadata, write_safetensors
from tests.tiny import distill_words, refused, student_run, teacher_run

STUDENT = "student.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder without weights."""
    open_run(tmp_path / "run", "distill", {"distill": {"cycles": 9}})
    return tmp_path / "run"


def written(
    run: Path, name: str, role: str = "", step: int = 9, identity: str | None = None
) -> Path:
    notes = whose_notes(identity or run_identity(run), run / (role or name), step)
    write_safetensors({"w": np.zeros(1, np.float32)}, run / name, notes)
    return run / name


def test_a_runs_own_weights_are_read(run: Path) -> None:
    file = written(run, STUDENT)
    assert weights_file(str(run), STUDENT) == file
    shutil.copytree(run, run.with_name("copy"))  # which is the same run
    assert weights_file(str(run.with_name("copy")), STUDENT).is_file()


def test_weights_of_another_run_are_refused_by_name(run: Path) -> None:
    file = written(run, STUDENT, identity="0123")
    said = r"the weights in .*student\.safetensors are of another run \(0123\), expected .* copy"
    with pytest.raises(Refused, match=said):
        weights_file(str(run), STUDENT)
    assert weights_file(str(file), STUDENT) == file  # which the user chose


@pytest.mark.parametrize("role", ["teacher", "student_ema_0.999", "student_lora"])
def test_weights_of_another_network_are_refused_by_name(role: str, run: Path) -> None:
    written(run, STUDENT, f"{role}.safetensors")
    with pytest.raises(Refused, match=f"are this run's {role}, expected its student; copy"):
        weights_file(str(run), STUDENT)


@pytest.mark.parametrize("note", [None, "", "[]", "{}", '{"run": 1, "role": 2, "step": 3}'])
def test_weights_that_say_nothing_are_read(note: str | None, run: Path) -> None:
    notes = {} if note is None else {"dmd2_of": note}
    write_safetensors({"w": np.zeros(1, np.float32)}, run / STUDENT, notes)
    check_whose(run / STUDENT, run)


def test_weights_of_an_earlier_step_than_the_others_are_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(run, STUDENT, step=4)
    write_exported(run, 9)
    check_whose(run / STUDENT, run)
    assert "student.safetensors are of step 4, its others of 9." in capsys.readouterr().err


def test_a_run_without_an_identity_notes_none(tmp_path: Path) -> None:
    assert whose_notes(None, tmp_path / STUDENT, 3) == {}


def test_commands_refuse_swapped_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, average = tmp_path / "run", "student_ema_0.9.safetensors"
    shutil.copytree(student_run(), run)
    of = json.loads(read_metadata(run / average)["dmd2_of"])
    assert of == {"run": run_identity(run), "role": "student_ema_0.9", "step": 4}
    shutil.copy(run / average, run / STUDENT)
    shutil.copy(teacher_run() / "teacher.safetensors", run / average)
    out = f"--out={tmp_path / 'x.png'}"
    message = refused(capsys, "sample", f"--workdir={run}", "--num=2", out)
    assert "are this run's student_ema_0.9, expected its student" in message
    message = refused(capsys, "sample", f"--workdir={run}", "--ema=0.9", "--num=2", out)
    assert "are of another run" in message
    teacher = tmp_path / "teacher"
    shutil.copytree(teacher_run(), teacher)
    shutil.copy(student_run() / STUDENT, teacher / "teacher.safetensors")
    words = (*distill_words(tmp_path / "new"), f"--config.teacher.weights={teacher}", "--dry_run")
    assert "are of another run" in refused(capsys, *words)
