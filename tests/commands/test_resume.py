"""Resuming through the command: what may change, what may not, and what a checkpoint gives back."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dmd2_jax.metrics.features.real import open_reference
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.run.exported import unfinished
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.sampling.runs import checkpoint_params, open_run, read_run_folder
from dmd2_jax.training import student as train_student
from dmd2_jax.training import teacher as train_teacher
from dmd2_jax.training.run import may_differ
from tests.tiny import (
    RECIPE,
    contents,
    distill_words,
    dmd2,
    get_config,
    refused,
    results,
    scratch,
    student_run,
    teacher_run,
)

ALLOW = "--allow_change=teacher"


def copied(tmp_path: Path, run: Path) -> Path:
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    return workdir


def train(workdir: Path, *more: str) -> list[str]:
    return ["train-teacher", f"--config={RECIPE}", f"--workdir={workdir}", *more]


def extra(workdir: Path, step: int) -> dict:
    return json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())[
        "extra"
    ]


def steps(workdir: Path) -> list[int]:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.all_steps()


def test_checkpoint_holds_config_position_teacher_and_metrics() -> None:
    held = extra(student_run(), 2)
    assert held["config"] == json.loads((student_run() / "config.json").read_text())["config"]
    # 2 cycles of 2 critic turns of 8 examples
    assert held["examples_seen"] == 2 * 2 * 8
    assert held["teacher"]["path"] == str(teacher_run() / "teacher.safetensors")
    row = read_metrics(student_run() / "metrics.jsonl")[1]
    assert held["metrics"]["generator_loss"] == row["generator_loss"]
    assert held["metrics"]["skipped_in_a_row"] == 0
    assert extra(teacher_run(), 4)["examples_seen"] == 4 * 8


def test_changed_config_is_refused_with_the_words_that_allow_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(tmp_path, student_run())
    before = contents(workdir)
    changes = ("--config.optim.critic_lr=1e-5", "--config.distill.batch_size=16")
    assert dmd2(*distill_words(workdir, *changes)) == 2
    message = capsys.readouterr().err
    assert "optim.critic_lr: got 1e-05, the run there has 0.0001" in message
    assert "--allow_change=distill.batch_size,optim.critic_lr." in message
    # One of the two is not enough.
    assert dmd2(*distill_words(workdir, *changes, "--allow_change=optim")) == 2
    assert "critic_lr" not in capsys.readouterr().err.split("expected")[0]
    assert contents(workdir) == before


def test_what_a_run_does_not_use_may_change(tmp_path: Path) -> None:
    unused = ("distill.batch_size=16", "distill.student_times=1,0.5", "optim.critic_lr=1e-5")
    words = [*(f"--config.{it}" for it in unused), "--dry_run"]
    assert dmd2(*train(copied(tmp_path, teacher_run()), *words)) == 0
    student = [f"--config.{it}" for it in ("teacher.lr=1", "teacher.batch_size=16")]
    run = tmp_path / "student"
    shutil.copytree(student_run(), run)
    assert dmd2(*distill_words(run, *student, "--config.distill.lora_alpha=3", "--dry_run")) == 0
    # Of a regression loss the teacher's pairs are made by its sampler.
    config = get_config()
    assert "teacher.sampler_steps" in may_differ(config, "distill")
    config.distill.regression_weight = 0.25
    assert not {"teacher.sampler_steps", "distill.regression_pairs"} & {
        *may_differ(config, "distill")
    }


def test_a_run_goes_on_with_as_many_samples_as_it_was_measured_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = distill_words(tmp_path / "run", "--dry_run", "--config.evaluate.training_samples=50")
    shutil.copytree(student_run(), tmp_path / "run")
    for every in (0, 1):  # also where it is not measured for a while
        message = refused(capsys, *words, f"--config.log.evaluate_every={every}")
        assert "evaluate.training_samples" in message


@pytest.mark.parametrize("command", ["train-teacher", "distill"])
def test_what_the_best_of_a_run_is_measured_by_stays(command: str) -> None:
    free = may_differ(get_config(), command)
    assert "evaluate.batch_size" in free
    assert not {"evaluate", "evaluate.training_samples"} & {*free}


def test_allowed_change_is_printed_kept_and_takes_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(tmp_path, teacher_run())
    words = train(
        workdir,
        "--config.teacher.steps=7",
        "--config.teacher.batch_size=16",
        "--allow_change=teacher.lr,teacher.batch_size",
    )
    assert dmd2(*words) == 0
    assert "teacher.batch_size: got 16, the run there has 8" in capsys.readouterr().out
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["teacher"]["batch_size"] == 16
    changed = {"teacher.batch_size": [8, 16], "teacher.steps": [6, 7]}
    assert record["changes"] == [{"after_step": 6, "changed": changed}]
    # Six steps of the old size, one of the new: no example is skipped or read again.
    assert extra(workdir, 7)["examples_seen"] == 6 * 8 + 16
    # The record stays when the run is resumed once more, unchanged.
    assert dmd2(*words) == 0
    assert json.loads((workdir / "config.json").read_text()) == record


def test_change_of_the_states_shapes_is_refused_though_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(tmp_path, student_run())
    before = contents(workdir)
    change = "--config.distill.gan_head_channels=16"
    assert dmd2(*distill_words(workdir, change, "--allow_change=distill.gan_head_channels")) == 2
    message = capsys.readouterr().err
    assert "allow_change=distill.gan_head_channels cannot be granted" in message
    assert "another structure than this config makes" in message
    assert contents(workdir) == before
    # Nor is it advised where it would be refused.
    assert dmd2(*distill_words(workdir, change)) == 2
    message = capsys.readouterr().err
    assert "distill.gan_head_channels: got 16" in message
    assert "could not grant these: checkpoint" in message and "allow the change" not in message


def test_allow_change_of_a_key_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dmd2(*distill_words(tmp_path / "run", "--allow_change=optim.critc_lr")) == 2
    assert "did you mean 'optim.critic_lr'?" in capsys.readouterr().err


def other_teacher(folder: Path) -> Path:
    """The teacher's weights but for the last bit of some."""
    tensors = load_file(teacher_run() / "teacher.safetensors")
    tensors["final_layer.linear.weight"] = np.nextafter(
        tensors["final_layer.linear.weight"], np.float32(9)
    )
    save_file(tensors, folder / "other.safetensors")
    return folder / "other.safetensors"


def test_another_teacher_is_refused_and_the_same_one_elsewhere_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(tmp_path, student_run())
    moved, other = tmp_path / "moved.safetensors", other_teacher(tmp_path)
    shutil.copy(teacher_run() / "teacher.safetensors", moved)
    before = contents(workdir)
    words = ("--config.distill.cycles=5", f"--config.teacher.weights={other}")
    for allowed in ((), ("--allow_change=teacher.weights",)):
        assert dmd2(*distill_words(workdir, *words, *allowed)) == 2
        assert "a student cannot change its teacher" in capsys.readouterr().err
        assert contents(workdir) == before
    assert dmd2(*distill_words(workdir, f"--config.teacher.weights={moved}")) == 0
    assert f"is now {moved}: the same weights" in capsys.readouterr().out


def test_sample_says_that_the_teacher_is_not_the_one_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(tmp_path, student_run())
    line = ("sample", f"--workdir={workdir}", "--which=teacher", "--num=4")
    assert dmd2(*line, f"--out={tmp_path / 'x.png'}") == 0
    assert "other weights" not in capsys.readouterr().err
    record = json.loads((workdir / "config.json").read_text())
    del record["seal"]  # by which an edited config is accepted
    record["config"]["teacher"]["weights"] = str(other_teacher(tmp_path))
    (workdir / "config.json").write_text(json.dumps(record))
    assert dmd2(*line, f"--out={tmp_path / 'x.png'}") == 0
    assert "has other weights than the teacher of the run" in capsys.readouterr().err


def test_sample_from_a_checkpoint_is_as_from_the_export(tmp_path: Path) -> None:
    latest = ("sample", f"--workdir={student_run()}", "--num=4")
    images = {}
    for name, more in {
        "export": (),
        "checkpoint": ("--checkpoint=4",),
        "export's average": ("--ema=0.9",),
        "checkpoint's average": ("--checkpoint=4", "--ema=0.9"),
        "earlier": ("--checkpoint=2",),
    }.items():
        out = tmp_path / f"{name}.png"
        assert dmd2(*latest, f"--out={out}", *more) == 0
        images[name] = out.read_bytes()
    assert images["checkpoint"] == images["export"]
    assert images["checkpoint's average"] == images["export's average"]
    assert len(set(images.values())) == 3


def test_checkpoint_params_of_a_teacher_are_what_it_exports() -> None:
    run = open_run(teacher_run())
    family, exported = run.family, run.family.to_state_dict(run.load())
    params, step = checkpoint_params(teacher_run())
    assert step == 6
    for name, tensor in family.to_state_dict(params).items():
        np.testing.assert_array_equal(tensor, exported[name], err_msg=name)
    raw, _ = checkpoint_params(teacher_run(), part="params")
    raw_tensor = family.to_state_dict(raw)["final_layer.linear.weight"]
    assert not np.array_equal(raw_tensor, exported["final_layer.linear.weight"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint=3"], "checkpoint 3 is not in"),
        (["--checkpoint=4", "--which=teacher"], "expected the student that the run in"),
        (["--checkpoint=4", "--ema=0.5"], "expected one of optim.ema_decays=(0.9,)"),
    ],
)
def test_sample_refuses_checkpoints_that_are_not_there(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    more = (f"--workdir={student_run()}", f"--out={tmp_path / 'x.png'}", *words)
    assert dmd2("sample", *more) == 2
    assert message in capsys.readouterr().err


@functools.cache
def classifier() -> Path:
    """A folder with the classifier of digits, trained once; a run that has it trains none."""
    folder = scratch()
    open_reference(get_config(), folder)
    return folder


def best_at(
    best: int, module: ModuleType, taken: Callable[[Any], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a command's FID be as measured after step `best`, and far higher after any other."""
    real = module.training_score

    def training_score(*arguments: Any) -> Callable[[Any], dict[str, float]] | None:
        score = real(*arguments)
        if score is None:
            return None

        def worse(state: Any) -> dict[str, float]:
            found = score(state)
            return found | {"fid": found["fid"] + 1e6 * abs(taken(state) - best)}

        return worse

    monkeypatch.setattr(module, "training_score", training_score)


def measured(workdir: Path) -> dict[int, dict[str, float]]:
    return {row["step"]: row for row in read_metrics(workdir / "metrics.jsonl") if "fid" in row}


def test_teacher_measures_fid_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(classifier(), tmp_path / "classifier")
    best_at(4, train_teacher, lambda state: int(state.step), monkeypatch)
    words = train(tmp_path, "--config.log.evaluate_every=2", "--config.log.keep=1")
    words += ["--config.log.keep_best=1"]
    words += ["--config.evaluate.training_samples=60", "--config.log.checkpoint_every=100"]
    assert dmd2(*words, "--config.teacher.steps=4") == 0
    assert steps(tmp_path) == [4]
    assert dmd2(*words) == 0  # which knows of step 4 by its checkpoint alone
    found = measured(tmp_path)
    assert list(found) == [2, 4, 6]
    assert steps(tmp_path) == [4, 6]
    assert extra(tmp_path, 4)["metrics"]["fid"] == found[4]["fid"] < 1e6
    assert extra(tmp_path, 6)["metrics"]["fid"] == found[6]["fid"] > 1e6
    # Measuring changes nothing of the training.
    name = "teacher.safetensors"
    assert results(tmp_path)[name] == results(teacher_run())[name]


def test_distillation_measures_fid_as_the_command_does_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(classifier(), tmp_path / "classifier")
    best_at(2, train_student, lambda state: int(state.step.generator), monkeypatch)
    more = ("--config.log.evaluate_every=1", "--config.log.keep=1", "--config.log.keep_best=1")
    words = distill_words(tmp_path, *more, "--config.evaluate.training_samples=60")
    early = [*words, "--config.log.stop_when=fid:patience=1"]
    assert dmd2(*early) == 0
    assert steps(tmp_path) == [2, 3] and unfinished(tmp_path) == ""
    assert (tmp_path / "progress.gif").exists()
    capsys.readouterr()
    assert dmd2(*early) == 0
    assert (
        "cycle 3 of 4: already ended by log.stop_when: fid was no better" in capsys.readouterr().err
    )
    assert steps(tmp_path) == [2, 3]
    # Without the condition it goes on as if there had been none.
    assert dmd2(*words, "--config.log.stop_when=()") == 0
    found = measured(tmp_path)
    assert list(found) == [1, 2, 3, 4]
    assert steps(tmp_path) == [2, 4]
    assert extra(tmp_path, 2)["metrics"]["fid"] == found[2]["fid"]
    name = "student_ema_0.9.safetensors"
    assert results(tmp_path)[name] == results(student_run())[name]
    # The same images of the same average, on eight devices in place of one.
    out = tmp_path / "figures.json"
    words = ("--checkpoint=2", "--ema=0.9", "--num=60", f"--seed={get_config().seed}")
    assert dmd2("evaluate", f"--workdir={tmp_path}", *words, f"--out={out}") == 0
    figures = json.loads(out.read_text())
    for name in ("fid", "class_accuracy"):
        expected = figures[f"student_ema_0.9_checkpoint_2_{name}"]
        assert found[2][name] == pytest.approx(expected, rel=1e-5), name
    # The file of the best is of that step too, whatever was exported later.
    words = ("--which=best", "--num=60", f"--seed={get_config().seed}", f"--out={out}")
    assert dmd2("evaluate", f"--workdir={tmp_path}", *words) == 0
    assert json.loads(out.read_text())["best_fid"] == figures["student_ema_0.9_checkpoint_2_fid"]
    picture = f"--out={tmp_path / 'best.png'}"
    assert dmd2("sample", f"--workdir={tmp_path}", "--which=best", "--num=60", picture) == 0
    assert dmd2("export", f"--workdir={tmp_path}", "--which=best", f"--out={tmp_path / 'x'}") == 0
    assert dmd2("convert", tmp_path, tmp_path / "y.safetensors", "--which=best") == 0
    best, converted = (load_file(tmp_path / name) for name in ("best.safetensors", "y.safetensors"))
    assert best.keys() == converted.keys()
    assert all(np.array_equal(best[name], converted[name]) for name in best)
    assert "2 of 4, each a generator turn" in (tmp_path / "x" / "README.md").read_text()


def test_run_moved_from_one_device_to_four_to_two_equals_one_that_stayed(tmp_path: Path) -> None:
    for devices, done in ((1, 2), (4, 4), (2, 6)):
        more = (f"--config.mesh.data={devices}", f"--config.teacher.steps={done}")
        assert dmd2(*train(tmp_path, *more)) == 0
    for part in ("params", "ema"):
        moved, _ = checkpoint_params(tmp_path, part=part)
        stayed, _ = checkpoint_params(teacher_run(), part=part)
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(stayed), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    before, after = (read_metrics(run / "metrics.jsonl") for run in (teacher_run(), tmp_path))
    losses = [[row["denoising_loss"] for row in rows] for rows in (before, after)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_run_that_diverges_stops_with_its_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(tmp_path, teacher_run())
    before = contents(workdir / "checkpoints")
    more = ("--config.teacher.lr=1e30", "--config.teacher.steps=40")
    assert dmd2(*train(workdir, *more, "--config.log.checkpoint_every=2", ALLOW)) == 1
    message = capsys.readouterr().err
    assert "10 updates in a row up to step 17 had gradients that are not finite" in message
    # Step 7 was finite, and absurd; every later one was refused, and none of them is kept.
    assert "max_skipped_in_a_row=10" in message
    assert contents(workdir / "checkpoints") == before
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["skipped_in_a_row"] for row in rows] == [0] * 7 + list(range(1, 10))
    # What was good goes on as if nothing had been.
    assert dmd2(*train(workdir, "--config.teacher.steps=7", ALLOW)) == 0
    assert steps(workdir)[-1] == 7


def test_linked_checkpoints_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir, outside = copied(tmp_path, student_run()), tmp_path / "outside"
    (workdir / "checkpoints" / "4").rename(outside)
    (workdir / "checkpoints" / "4").symlink_to(outside)
    before = contents(outside)
    for words in (
        distill_words(workdir, "--config.distill.cycles=5"),
        ["sample", f"--workdir={workdir}", "--checkpoint=2", f"--out={tmp_path / 'x.png'}"],
    ):
        assert dmd2(*words) == 2
        assert "is a symbolic link to" in capsys.readouterr().err
    assert contents(outside) == before


def test_a_run_that_is_older_than_a_key_has_its_default(tmp_path: Path) -> None:
    run = copied(tmp_path, student_run())
    record = json.loads((run / "config.json").read_text())
    del record["seal"], record["run"]
    del record["config"]["model"]["shift"], record["config"]["teacher"]["p_std"]
    (run / "config.json").write_text(json.dumps(record))
    config = read_run_folder(run).config
    assert (config.model.shift, config.teacher.p_std) == (1.0, 1.2)
    assert config.model.width == get_config().model.width
    assert dmd2("sample", f"--workdir={run}", "--num=2", f"--out={tmp_path / 'x.png'}") == 0


def test_workdir_alone_goes_on_with_the_run_and_says_when_it_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = copied(tmp_path, teacher_run())
    weights = (workdir / "teacher.safetensors").read_bytes()
    assert dmd2("train-teacher", f"--workdir={workdir}") == 0
    said = capsys.readouterr().err
    assert said.startswith("devices: 1 cpu.\n")
    assert "step 6 of 6: already finished" in said and "raise config.teacher.steps" in said
    assert (workdir / "teacher.safetensors").read_bytes() == weights
    # A value that may not change is refused as ever; one that may takes effect.
    assert dmd2("train-teacher", f"--workdir={workdir}", "--config.teacher.lr=1") == 2
    assert "teacher.lr: got 1.0, the run there has" in capsys.readouterr().err
    assert dmd2("train-teacher", f"--workdir={workdir}", "--config.teacher.steps=7") == 0
    assert "step 7 of 7: compiling" in capsys.readouterr().err
    assert dmd2(*train(tmp_path / "other", "--config.teacher.steps=7")) == 0
    assert read_metrics(workdir / "metrics.jsonl") == read_metrics(tmp_path / "other/metrics.jsonl")


def test_workdir_alone_needs_a_run_of_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dmd2("distill", f"--workdir={student_run()}", "--dry-run") == 0
    assert "would be resumed" in capsys.readouterr().out
    assert dmd2("distill", f"--workdir={teacher_run()}") == 2
    message = capsys.readouterr().err
    assert f"`dmd2 train-teacher --workdir={teacher_run()}` goes on with it" in message
    assert dmd2("distill", f"--workdir={tmp_path}") == 2
    assert f"no run in --workdir={tmp_path} to go on with" in capsys.readouterr().err
