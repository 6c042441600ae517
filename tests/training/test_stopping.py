"""A run ends by what it reports, the same whether it was stopped and resumed or not."""

import json
import math
import signal
from pathlib import Path

import pytest

from dmd2_jax.config.load import apply_overrides
from dmd2_jax.config.refused import Refused
from dmd2_jax.run.exported import EXPORTED, exported_step
from dmd2_jax.run.job import Verdict
from dmd2_jax.runtime.preemption import Interrupted
from dmd2_jax.training.stopping import Stopping, stop_conditions
from dmd2_jax.training.stopping import stopping as make_stopping
from tests.run.test_loop import LOG, Run
from tests.tiny import RECIPE, get_config, refused


def stopping(*words: str) -> Stopping:
    config = get_config()
    config.log.evaluate_every = 1
    config.log.stop_when = words
    return Stopping(stop_conditions(config, students=True), "cycle")


def verdicts(it: Stopping, name: str, values: list[float | None]) -> list[Verdict]:
    """What is said of a figure's values at steps 10, 20, ..."""
    return [it.report(10 * i + 10, {name: value, "other": 1.0}) for i, value in enumerate(values)]


def test_patience_ends_a_run_after_so_many_measurements_that_are_no_better() -> None:
    found = verdicts(stopping("fid:patience=2"), "fid", [5.0, 4.0, 4.5, 3.5, 3.5, 3.6])
    assert [it.best for it in found] == [True, True, False, True, False, False]
    assert [it.reason for it in found[:-1]] == [""] * 5
    assert found[-1].reason == "fid was no better than 3.5 of cycle 40 in 2 measurements"


def test_patience_takes_the_highest_where_more_is_better() -> None:
    found = verdicts(stopping("recall:patience=1"), "recall", [0.1, 0.3, 0.2])
    assert [it.best for it in found] == [True, True, False]
    assert found[-1].reason == "recall was no better than 0.3 of cycle 20 in 1 measurement"


@pytest.mark.parametrize("missing", [math.nan, None, math.inf])
def test_what_is_not_finite_is_never_the_best_nor_out_of_bounds(missing: float | None) -> None:
    both = stopping("fid:patience=3", "recall:below=0.2")
    found = verdicts(both, "fid", [missing, missing, 9.0, missing])
    assert [it.best for it in found] == [False, False, True, False]
    assert [it.reason for it in verdicts(both, "recall", [None, 0.5, math.nan])] == [""] * 3
    assert verdicts(stopping("fid:patience=1"), "fid", [math.nan])[0].reason == (
        "fid was no better than nothing finite in 1 measurement"
    )


def test_a_bound_counts_once_it_was_kept() -> None:
    found = verdicts(stopping("recall:below=0.2"), "recall", [0.0, 0.1, 0.2, 0.3, 0.19])
    assert [it.reason for it in found] == ["", "", "", "", "recall is 0.19, below 0.2"]
    found = verdicts(stopping("fid:above=9"), "fid", [20.0, 9.0, 9.5])
    assert [it.reason for it in found] == ["", "", "fid is 9.5, above 9"]
    assert not any(it.best for it in found)


def test_a_warning_ends_a_run_where_it_is_named_alone() -> None:
    found = {"warning_mean": 1.2, "warning_std": 2.0}
    assert stopping("warning_std").report(10, found).reason == "warning_std is 2"
    assert stopping("warning_critic").report(10, found).reason == ""
    assert stopping().report(10, found).reason == ""


def test_stopping_resumed_anywhere_decides_as_one_that_never_stopped() -> None:
    words = ("fid:patience=2", "recall:below=0.3", "warning_mean")
    fids = [9.0, 8.0, None, 7.0, 7.5, 7.0, 7.2, 6.0]
    rows = [
        {"step": i, "loss": 1.0} | ({"fid": fid, "recall": 0.4 - 0.01 * i} if i % 3 else {})
        for i, fid in enumerate(fids, 1)
    ]
    whole = stopping(*words)
    expected = [whole.report(row["step"], row) for row in rows]
    assert any(it.reason for it in expected)
    for cut in range(1, len(rows)):
        resumed = stopping(*words)
        assert resumed.replay(rows[:cut]) == expected[cut - 1]
        assert [resumed.report(row["step"], row) for row in rows[cut:]] == expected[cut:]


FIDS = {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5, 10: 1.0}


@pytest.mark.parametrize("at", [None, 3, 4, 6])
def test_run_loop_ends_early_and_keeps_the_best_whenever_it_was_stopped(
    tmp_path: Path, at: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, LOG | {"evaluate_every": 2})

    def to(**options: object) -> float:
        it = stopping("fid:patience=2")
        fid = lambda state: {"fid": FIDS[run.taken[-1] + 1]}  # noqa: E731
        return run.to(12, score=fid, stopper=it, **options)

    if at is not None:
        with pytest.raises(Interrupted):
            to(at={at - 1: signal.SIGINT})
    x = to()
    assert run.taken == list(range(8))
    assert run.rows()[-1]["fid"] == 3.5
    assert run.checkpoints()[-1] == exported_step(tmp_path) == 8
    assert json.loads((tmp_path / EXPORTED).read_text())["ended"].startswith("fid was no better")
    assert "step 8 of 12: ended by log.stop_when: fid was no better" in capsys.readouterr().err
    # Where it was stopped at the best, it is written once more.
    assert [step for step, _ in run.best] == ([2, 4, 4] if at == 4 else [2, 4])
    assert run.best[-1][1] == next(row["x"] for row in run.rows() if row["step"] == 4)
    assert run.drawn[-1] == 8
    assert to() == x and run.taken == list(range(8))
    assert "step 8 of 12: already ended by log.stop_when: fid was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fidd:patience=3",), r"has 'fidd:patience=3', expected conditions of fid, .*fid\b"),
        (("fid rises 3",), "has 'fid rises 3', expected conditions of fid"),
        ((3,), "has 3, expected conditions of"),
        (("fid",), "has 'fid', expected fid:patience=N"),
        (("fid:patience=0",), "expected fid:patience=N with N from 1"),
        (("fid:patience=2.5",), "expected fid:patience=N with N from 1"),
        (("recall:below=nan",), "expected recall:patience=N"),
        (("recall:under=0.2",), "recall:below=X or recall:above=X"),
        (("warning_mean:patience=2",), "expected warning_mean alone"),
        (("fid:patience=2", "recall:patience=2"), "patience for fid and recall, expected one"),
    ],
)
def test_stop_conditions_refuses_what_is_none(words: tuple, said: str) -> None:
    with pytest.raises(Refused, match=f"log.stop_when.*{said}"):
        stopping(*words)


def test_stop_conditions_of_a_teacher_are_those_of_figures() -> None:
    config = get_config()
    config.log.stop_when = ("warning_mean",)
    assert stop_conditions(config, students=False) == ()
    assert [it.name for it in stop_conditions(config, students=True)] == ["warning_mean"]


@pytest.mark.parametrize(
    ("changed", "condition", "said"),
    [
        ({"model.num_classes": "0"}, "class_accuracy:below=0.5", "no network of model.num_classes"),
        ({"distill.gan_critic_weight": "None"}, "warning_discriminator", "no run without a GAN"),
        ({"data.name": "latents"}, "warning_saturation", "latents do not have"),
        ({"log.evaluate_every": "0"}, "warning_recall", "evaluate_every=0"),
    ],
)
def test_what_a_run_never_reports_is_no_condition(
    changed: dict[str, str], condition: str, said: str
) -> None:
    config = get_config()
    config.log.evaluate_every, config.log.stop_when = 1, (condition,)
    assert stop_conditions(config, students=True)
    apply_overrides(config, changed)
    with pytest.raises(Refused, match=said):
        stop_conditions(config, students=True)


def test_weights_that_were_the_best_by_other_conditions_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best.safetensors").touch()
    monkeypatch.setattr("dmd2_jax.training.stopping.written_step", lambda file: 20)
    rows = [{"step": 10, "recall": 0.5, "fid": 9.0}, {"step": 20, "recall": 0.4, "fid": 8.0}]
    for name, steps in (("fid", []), ("recall", ["10"])):
        caplog.clear()
        config = get_config()
        config.log.evaluate_every, config.log.stop_when = 1, (f"{name}:patience=9",)
        it = make_stopping(stop_conditions(config, students=True), "cycle", tmp_path)
        it.replay([*rows, {"step": 30}])
        assert [str(one.args[-1]) for one in caplog.records] == steps
    assert make_stopping((), "cycle", tmp_path) is None


@pytest.mark.parametrize("command", ["train-teacher", "distill"])
def test_dry_run_refuses_conditions_that_cannot_be_judged(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (command, f"--config={RECIPE}", f"--workdir={tmp_path / 'run'}", "--dry_run")
    when = "--config.log.stop_when=recall:below=0.2"
    message = refused(capsys, *words, when)
    assert "log.stop_when has recall and log.evaluate_every=0 (never)" in message
    few = ("--config.log.evaluate_every=1", "--config.evaluate.training_samples=3")
    message = refused(capsys, *words, when, *few)
    assert "log.stop_when has recall and evaluate.training_samples=3: k=3 nearest" in message
    assert list(tmp_path.iterdir()) == []
