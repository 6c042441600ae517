"""A SiT is trained on a flow and distilled, through the commands."""

from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.run.metrics import read_metrics
from tests.tiny import RECIPE, dmd2, refused

SMALL = (
    f"--config={RECIPE}",
    "--config.model.family=sit",
    "--config.model.width=16",
    "--config.model.depth=2",
    "--config.model.heads=2",
    "--config.distill.student_times=1,0.5",
)
FLOW = (
    "--config.teacher.objective=flow",
    "--config.teacher.p_mean=0",
    "--config.teacher.p_std=1",
    "--config.teacher.steps=6",
)
STUDENT = ("--config.distill.student_times=1,0.5", "--config.distill.denoising_weight=flow",
           "--config.distill.cycles=2", "--config.log.grid_every=2")  # fmt: skip


@pytest.mark.slow
def test_sit_is_trained_on_a_flow_distilled_sampled_and_measured(tmp_path: Path) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert dmd2("train-teacher", *SMALL, *FLOW, f"--workdir={teacher}") == 0
    rows = read_metrics(teacher / "metrics.jsonl")
    # At first the prediction is 0: the error is that of the velocity itself, 1 + E x_0^2.
    assert 1.0 < rows[0]["denoising_loss"] < 3.0
    weights = f"--config.teacher.weights={teacher}"
    assert dmd2("distill", *SMALL, *STUDENT, weights, f"--workdir={student}") == 0
    last = read_metrics(student / "metrics.jsonl")[-1]
    assert all(np.isfinite(last[name]) for name in ("generator_loss", "critic_loss"))
    out = tmp_path / "x.npz"
    assert dmd2("sample", f"--workdir={student}", "--num=4", f"--out={out}") == 0
    assert len(np.load(out)["images" if "images" in np.load(out) else "arr_0"]) == 4


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
    words = ("train-teacher", *SMALL, *FLOW, f"--config.{override}", "--dry_run")
    if "eps" in override:
        words += ("--config.distill.student_times=999.0",)
    assert message in refused(capsys, *words, f"--workdir={tmp_path / 'x'}")
