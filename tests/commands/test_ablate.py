"""`dmd2 ablate`: two rows and two seeds, interrupted and resumed, and what is refused."""

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import statistics
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from PIL import Image

from dmd2_jax.commands.ablate import runs as module
from dmd2_jax.run.loop import DivergedError
from dmd2_jax.run.metrics import read_metrics
from tests.tiny import contents, dmd2, refused, scratch, teacher_run

FILE = Path(__file__).parents[1] / "tiny_ablation.py"
KEYS = [f"{row}/seed_{seed}" for seed in (0, 1) for row in ("short", "long")]


def words(workdir: Path, *more: str) -> list[str]:
    weights = f"--config.teacher.weights={teacher_run()}"
    return ["ablate", f"--config={FILE}", f"--workdir={workdir}", weights, *more]


class Story(NamedTuple):
    """A table that was interrupted as its second student was to be measured, and then resumed.

    Attributes:
      workdir: of the table; do not change it.
      code: exit code of the interrupted command.
      message: its last words.
      between: table.json after it.
      first: files of the run that was finished then.
      printed: by the second command.
    """

    workdir: Path
    code: int
    message: str
    between: dict[str, Any]
    first: dict[str, bytes]
    printed: str


@functools.cache
def story() -> Story:
    workdir, measure = scratch() / "table", module.evaluate
    message, printed, calls = io.StringIO(), io.StringIO(), []

    def interrupted(*arguments: Any, **options: Any) -> dict[str, Any]:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    with mock.patch.object(module, "evaluate", interrupted), contextlib.redirect_stderr(message):
        code = dmd2(*words(workdir))
    between = json.loads((workdir / "table.json").read_text())
    first = contents(workdir / KEYS[0])
    with contextlib.redirect_stdout(printed):
        assert dmd2(*words(workdir)) == 0
    return Story(workdir, code, message.getvalue(), between, first, printed.getvalue())


def table() -> dict[str, Any]:
    return json.loads((story().workdir / "table.json").read_text())


def test_ablate_keeps_what_is_finished_when_it_is_interrupted() -> None:
    assert story().code == 130 and "The same command again goes on" in story().message
    assert list(story().between["runs"]) == KEYS[:1]
    assert story().between["rows"]["short"]["seeds"] == [0]
    assert story().between["pairs"][0]["verdict"] == "not run"


def test_ablate_leaves_finished_runs_alone_when_it_goes_on() -> None:
    assert contents(story().workdir / KEYS[0]) == story().first
    assert "4 runs, 1 of them finished before." in story().printed
    assert list(table()["runs"]) == KEYS


def test_ablate_trains_no_cycle_twice() -> None:
    for key in KEYS:  # the second one was trained before the interruption, and not measured
        steps = [1, 2] if key.startswith("long") else [1]
        rows = read_metrics(story().workdir / key / "metrics.jsonl")
        assert [row["step"] for row in rows if "generator_loss" in row] == steps


def test_ablate_stopped_in_the_middle_of_a_row_has_the_figures_of_one_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(story().workdir / "classifier", tmp_path / "classifier")  # saves its training
    more = ("--rows=long", "--seeds=1")  # which nothing disturbed in the story
    prepare = module.train_student.prepare

    def stopped(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)  # as the first cycle begins
        return prepare(*arguments)

    with mock.patch.object(module.train_student, "prepare", stopped):
        assert dmd2(*words(tmp_path, *more)) == 0
    assert "stopped by SIGTERM after cycle 1 of 2" in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()
    assert dmd2(*words(tmp_path, *more)) == 0
    rows = read_metrics(tmp_path / KEYS[3] / "metrics.jsonl")
    assert [row["step"] for row in rows if "generator_loss" in row] == [1, 2]
    runs = [json.loads((it / "table.json").read_text()) for it in (tmp_path, story().workdir)]
    figures = [run["runs"][KEYS[3]]["figures"] for run in runs]
    for found in figures:
        del found["seconds_per_image"]
    assert figures[0] == figures[1] and figures[0]["fid"] > 0


def test_ablate_gives_mean_and_deviation_of_what_runs_measured() -> None:
    for row in ("short", "long"):
        files = [story().workdir / row / f"seed_{seed}" / "metrics.json" for seed in (0, 1)]
        fids = [json.loads(file.read_text())["student_ema_0.9_fid"] for file in files]
        assert fids[0] != fids[1]
        found = table()["rows"][row]["figures"]["fid"]
        assert found["mean"] == pytest.approx(statistics.mean(fids), rel=1e-12)
        assert found["std"] == pytest.approx(statistics.stdev(fids), rel=1e-12)
        assert found["number"] == 2


def test_ablate_runs_each_row_as_it_says() -> None:
    runs = [json.loads((story().workdir / key / "config.json").read_text()) for key in KEYS]
    configs = [run["config"] for run in runs]
    assert [config["distill"]["cycles"] for config in configs] == [1, 2, 1, 2]
    assert [config["seed"] for config in configs] == [0, 0, 1, 1]
    assert {config["name"] for config in configs} == {"tiny_ablation_short", "tiny_ablation_long"}
    assert story().message.startswith("devices: 1 cpu.\n")
    for run, key in zip(runs, KEYS, strict=True):
        assert run["devices"] == [{"after_step": 0, **table()["runs"][key]["devices"]}]


def test_ablate_prints_and_writes_the_table() -> None:
    text = (story().workdir / "table.md").read_text(encoding="utf-8")
    assert "|  | LONG | paper: FID | FID | class accuracy | runs |" in text
    mean = table()["rows"]["long"]["figures"]["fid"]["mean"]
    assert f"| two cycles | ✓ | 2.61 | {mean:.2f} ± " in text
    assert "teacher, 3 calls" in text and "real, half to half" in text
    assert f"{mean:.2f} ± " in story().printed and "two cycles before one cycle" in story().printed
    with Image.open(story().workdir / "table.png") as picture:
        assert picture.size[0] == 640


def test_ablate_of_a_finished_table_trains_and_measures_nothing() -> None:
    before = table()
    with (
        mock.patch.object(module, "evaluate", side_effect=AssertionError),
        mock.patch.object(module.train_student, "train", side_effect=AssertionError),
    ):
        assert dmd2(*words(story().workdir)) == 0
    assert table() == before


def test_ablate_takes_rows_and_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    story()
    before = contents(story().workdir)
    more = ("--rows=long", "--seeds=1,5", "--dry_run")
    assert dmd2(*words(story().workdir, *more)) == 0
    assert "2 runs can be made, 1 of them finished" in capsys.readouterr().out
    assert contents(story().workdir) == before


def test_ablate_measures_again_what_was_measured_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    change = "--config.evaluate.num_samples=40"
    assert dmd2(*words(story().workdir, change, "--dry_run")) == 0
    assert "4 runs can be made, 0 of them finished" in capsys.readouterr().out


def test_ablate_refuses_runs_of_another_base_before_it_trains(
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = story().workdir
    before = contents(workdir)
    message = refused(capsys, *words(workdir, "--config.optim.critic_lr=0.5"))
    assert "row 'short'" in message and "optim.critic_lr: got 0.5" in message
    assert contents(workdir) == before


def test_ablate_counts_a_run_that_diverges_and_goes_on(tmp_path: Path) -> None:
    weights = story().workdir / KEYS[1] / "student_ema_0.9.safetensors"
    figures = {"student_ema_0.9_fid": 2.0, "teacher_fid": 1.0, "teacher_nfe": 3}

    def train(config: Any, folder: Path) -> Path:
        if config.distill.cycles == 1:
            raise DivergedError("3 updates in a row")
        return weights

    with (
        mock.patch.object(module.train_student, "train", train),
        mock.patch.object(module, "evaluate", return_value=figures),
    ):
        assert dmd2(*words(tmp_path, "--seeds=0")) == 0
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["runs"]["short/seed_0"]["diverged"] == "3 updates in a row"
    assert found["rows"]["short"]["diverged"] == 1 and not found["rows"]["short"]["figures"]
    assert found["rows"]["long"]["figures"]["fid"]["mean"] == 2.0
    assert "| one cycle |  | 3.48 | - | 1, 1 diverged |" in (tmp_path / "table.md").read_text(
        "utf-8"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--rows=longer", "expected some of short,long; did you mean 'long'?\n"),
        ("--seeds=1,1", "--seeds=(1, 1), expected one or more different"),
        ("--seeds=x", "'x', expected whole numbers like 0,1,2"),
        ("--config.teacher.weights=nowhere", "no weights at nowhere"),
        ("--config.distill.batch_size=0", "distill.batch_size=0, expected at least 1"),
        ("--config=digits", "expected get_ablation() to return"),
        ("--workdir", "is the folder of a run"),
    ],
)
def test_ablate_refuses(
    more: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f"--workdir={teacher_run()}" if more == "--workdir" else more
    assert message in refused(capsys, *words(tmp_path, more))
    assert list(tmp_path.iterdir()) == []


def test_ablate_refuses_a_row_whose_values_contradict_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    text = FILE.read_text().replace('"distill.cycles": 1', '"distill.train_critic": False')
    file.write_text(text)
    workdir = tmp_path / "table"
    message = refused(capsys, *words(workdir, f"--config={file}"))
    assert "row 'short' of" in message and "train_critic=False leaves" in message
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ("--config.mesh.rules='conv9/kernel=-:-:-:data'", "conv9/kernel"),
        ("--config.mesh.offload=heads", "heads"),
    ],
)
def test_ablate_checks_the_program_that_it_trains(
    placement: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Only where the state lies on the mesh is refused: the algorithm itself is a whole one.
    found = refused(capsys, *words(tmp_path / "table", placement, "--dry_run"))
    assert "row 'short' of" in found and message in found


def test_ablate_refuses_a_damaged_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.json").write_text('{"ablation": "tiny_ablation"}')
    assert "table.json cannot be read" in refused(capsys, *words(tmp_path))


def test_ablate_refuses_the_table_of_another_ablation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.json").write_text('{"ablation": "table3", "runs": {}}')
    message = refused(capsys, *words(tmp_path))
    assert "holds the ablation 'table3', expected 'tiny_ablation'" in message
