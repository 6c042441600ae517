"""The command itself: what it prints, writes and returns."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.run.metrics import read_metrics
from tests.compiling import flags
from tests.tiny import (
    RECIPE,
    cache_folder,
    contents,
    distill_words,
    dmd2,
    refused,
    student_run,
    teacher_run,
)

ROOT = Path(__file__).resolve().parents[2]


def python_m(*words: str | Path) -> subprocess.Popen[str]:
    """Start `python -m dmd2_jax.commands.main` as a user without an installation does."""
    return subprocess.Popen(
        [sys.executable, "-m", "dmd2_jax.commands.main", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags(),
            "JAX_COMPILATION_CACHE_DIR": str(cache_folder()),
        },
    )


@pytest.mark.parametrize(
    "command", ["train-teacher", "distill", "sample", "convert", "evaluate", "report", "demo"]
)
def test_help_says_what_is_written_and_gives_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dmd2(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"example:\n  dmd2 {command}" in text
    assert "--workdir" in text


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("--help") == 0
    text = capsys.readouterr().out
    for command in ("train-teacher", "distill", "sample", "convert", "evaluate", "demo", "cache"):
        assert f"    {command}" in text


def test_dry_run_prints_sizes_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*distill_words(tmp_path / "run"), "--dry_run"]
    capsys.readouterr()
    assert dmd2(*words) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert rows["generator"] == ["generator", *rows["teacher"][1:]]
    assert "discriminator" in rows
    assert "dry run: " in text
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_a_run_leaves_it_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(teacher_run())
    words = ["train-teacher", f"--config={RECIPE}", f"--workdir={teacher_run()}", "--dry_run"]
    assert dmd2(*words) == 0
    assert "would be resumed" in capsys.readouterr().out
    assert contents(teacher_run()) == before


def test_sample_writes_a_grid_that_the_seed_determines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sample(name: str, *more: str) -> np.ndarray:
        out = tmp_path / f"{name}.png"
        words = ["sample", f"--workdir={student_run()}", f"--out={out}", "--num=6", *more]
        assert dmd2(*words) == 0
        return np.asarray(Image.open(out))

    first = sample("first")
    np.testing.assert_array_equal(first, sample("same"))
    assert not np.array_equal(first, sample("seed", "--seed=1"))
    assert not np.array_equal(first, sample("classes", "--classes=3,7"))
    assert not np.array_equal(first, sample("teacher", "--which=teacher"))
    file = student_run() / "student.safetensors"
    np.testing.assert_array_equal(first, sample("weights", f"--weights={file}"))
    out, err = capsys.readouterr()
    assert "6 images: " in out
    assert err.startswith("devices: 1 cpu.\n")


def test_sample_uses_the_average_asked_for(tmp_path: Path) -> None:
    words = ["sample", f"--workdir={student_run()}", "--num=4"]
    file = student_run() / "student_ema_0.9.safetensors"
    assert dmd2(*words, f"--out={tmp_path / 'a.png'}", "--ema=0.9") == 0
    assert dmd2(*words, f"--out={tmp_path / 'b.png'}", f"--weights={file}") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signal_saves_says_how_to_resume_and_the_same_command_does(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = ["train-teacher", f"--config={RECIPE}", f"--workdir={tmp_path / 'run'}"]
    process = python_m(
        *words, "--config.teacher.steps=1000000", "--config.log.teacher_grid_every=1000000"
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, message = process.communicate(timeout=120)
    assert process.returncode == code, message
    assert f"stopped by {number.name} after step" in message
    assert "To resume:" in message
    assert "-m dmd2_jax.commands.main train-teacher" in message or "dmd2 train-teacher" in message
    assert "Traceback" not in message
    stopped = read_metrics(metrics)[-1]["step"]
    assert dmd2(*words, f"--config.teacher.steps={stopped + 2}") == 0
    assert [row["step"] for row in read_metrics(metrics)] == list(range(1, stopped + 3))
    assert (tmp_path / "run" / "teacher.safetensors").exists()


@pytest.mark.parametrize("span", ["", "3", "a:b", "-1:2", "1:0"])
def test_profile_asks_for_start_and_count(
    span: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert dmd2("distill", "--config=x", f"--workdir={tmp_path}", f"--profile={span}") == 2
    assert "expected START:COUNT" in capsys.readouterr().err


def test_ctrl_c_while_a_command_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(chosen: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dmd2_jax.commands.main._parser", pressed)  # which imports it
    assert dmd2("report", "--workdir=x") == 130
    assert capsys.readouterr().err == "dmd2: interrupted before there was anything to save.\n"


def test_a_name_does_not_act_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "report", f"--workdir={tmp_path}/\x1b[2J\u202egone")
    assert "\x1b" not in message and "\u202e" not in message
    assert "\\x1b[2J" in message
