"""A SiT is trained on a flow and distilled, through the commands: the recipe of tests/tiny.py."""

from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.run.metrics import read_metrics
from tests.tiny import RECIPE, distill_words, dmd2, refused, student_run, teacher_run


def test_sit_is_trained_on_a_flow_and_its_student_is_sampled(tmp_path: Path) -> None:
    rows = read_metrics(teacher_run() / "metrics.jsonl")
    # At first the prediction is 0: the error is that of the velocity itself, 1 + E x_0^2.
    assert 1.0 < rows[0]["denoising_loss"] < 3.0
    last = read_metrics(student_run() / "metrics.jsonl")[-1]
    assert all(np.isfinite(last[name]) for name in ("generator_loss", "critic_loss"))
    out = tmp_path / "x.npz"
    assert dmd2("sample", f"--workdir={student_run()}", "--num=4", f"--out={out}") == 0
    with np.load(out) as file:
        assert len(file["arr_0"]) == 4


def test_teacher_of_a_diffusers_folder_is_refused_by_what_to_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(__file__).parents[2] / "golden" / "diffusers_models" / "dit"
    words = distill_words(tmp_path / "run", f"--config.teacher.weights={folder}", "--dry_run")
    message = refused(capsys, *words)
    assert f"{folder}: got weights with an embedding of the time in each block" in message
    assert "take the original file" in message and "config.model.pipeline" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.objective=edm", "none of that objective's, expected flow"),
        ("model.prediction=eps", "none of that objective's, expected eps"),
    ],
)
def test_training_refuses_an_objective_of_other_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    words = ("train-teacher", f"--config={RECIPE}", f"--config.{override}", "--dry_run")
    if "eps" in override:
        words += ("--config.distill.student_times=999.0",)
    assert message in refused(capsys, *words, f"--workdir={tmp_path / 'x'}")
