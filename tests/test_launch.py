"""The launch scripts: what all refuse, and the local ones at work."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmd2_jax.run.metrics import read_metrics
from tests.launching import (
    COMMAND,
    PLACES,
    ROOT,
    RUN,
    SCRIPTS,
    WITH_COMMAND,
    launch,
    note_takers,
    printed,
    told,
    variables,
)
from tests.tiny import cache_folder


def test_every_script_is_tested() -> None:
    assert {script.stem for script in SCRIPTS} == set(PLACES)


@pytest.mark.parametrize("name", PLACES)
def test_script_explains_itself(name: str) -> None:
    script, done = ROOT / "launch" / f"{name}.sh", launch(name, "--help")
    assert done.returncode == 0
    assert f"usage: launch/{script.name}" in done.stdout
    for option in re.findall(r"^    (--\w+).*\)", script.read_text(), re.M):
        assert option in done.stdout


@pytest.mark.parametrize("name", PLACES)
def test_script_refuses_missing_words_with_its_usage(name: str) -> None:
    for words in ((), PLACES[name][:-1]):
        done = launch(name, *words)
        assert done.returncode == 2
        assert ", expected" in done.stderr
        assert f"usage: launch/{name}.sh" in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize("name", PLACES)
def test_script_refuses_an_option_that_it_does_not_know(name: str) -> None:
    done = launch(name, "--no_such_option", *PLACES[name], *COMMAND)
    assert done.returncode == 2
    assert "--no_such_option" in done.stderr


@pytest.mark.parametrize("name", PLACES)
def test_script_that_prints_starts_nothing(name: str, tmp_path: Path) -> None:
    before = set(ROOT.glob("build/dmd2_jax*"))
    done, notes = told(
        note_takers(tmp_path), name, "--dry_run", *PLACES[name], *(COMMAND * (name in WITH_COMMAND))
    )
    assert done.returncode == 0
    assert notes == []
    assert set(ROOT.glob("build/dmd2_jax*")) == before


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_script_passes_shellcheck(script: Path) -> None:
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    linter = shutil.which("shellcheck", path=folders)
    assert linter, "shellcheck is not installed, expected it from the extra [dev]"
    done = subprocess.run([linter, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ---- one process

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def environment(folder: Path, body: str) -> Path:
    """Make a folder that looks like an installed environment, with a Python of a test's own."""
    (folder / "bin").mkdir()
    (folder / "bin" / "pip").touch()
    (folder / "bin" / "python").write_text(f"#!/bin/sh\n{body.format(python=sys.executable)}\n")
    (folder / "bin" / "python").chmod(0o755)
    (folder / ".installed").touch()
    return folder


def test_local_prints_its_command() -> None:
    assert shlex.split(printed("local")) == RUN


@needs_make
def test_local_runs_its_command(tmp_path: Path) -> None:
    folder = environment(tmp_path, 'exec {python} "$@"')
    words = ("train-teacher", "--config=tests/tiny.py", f"--workdir={tmp_path / 'run'}")
    done = launch("local", *words, "--dry_run", VENV=str(folder), JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr
    assert f"dry run: {tmp_path / 'run'} can be started." in done.stdout


# ---- several processes here: the environment is one whose Python does what a test says


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """Return an environment whose `python -m MODULE CODE` runs CODE in a real Python."""
    return environment(tmp_path, 'exec {python} -c "$3" "$@"')


WHO = "import os, sys, signal, time; i = int(os.environ['DMD2_PROCESS_ID']); "
WAITS = WHO + (
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit({saved})); "
    "signal.signal(signal.SIGINT, lambda *_: sys.exit(130)); "
    "os.write(1, b'ready\\n'); time.sleep(150)"  # at once: the processes share a pipe
)


def test_local_processes_prints_every_process() -> None:
    options = ("--processes=3", "--devices_per_process=4", "--port=9911")
    lines = printed("local_processes", *options, XLA_FLAGS="--xla_one --xla_two").splitlines()
    for number, line in enumerate(lines):
        assert shlex.split(line) == [
            "env",
            "DMD2_COORDINATOR=127.0.0.1:9911",
            "DMD2_NUM_PROCESSES=3",
            f"DMD2_PROCESS_ID={number}",
            "JAX_PLATFORMS=cpu",
            "XLA_FLAGS=--xla_one --xla_two --xla_force_host_platform_device_count=4",
            *RUN,
        ]
    assert len(lines) == 3


def test_local_processes_divides_the_gpus() -> None:
    lines = printed("local_processes", "--gpus_per_process=2").splitlines()
    found = [re.search(r"CUDA_VISIBLE_DEVICES=(\S+)", line)[1] for line in lines]
    assert [shlex.split(text) for text in found] == [["0,1"], ["2,3"]]


@pytest.mark.parametrize("option", ["--processes=0", "--processes=two", "--port=", "--grace=-1"])
def test_local_processes_refuses_what_is_no_number(option: str) -> None:
    done = launch("local_processes", option, "demo")
    assert done.returncode == 2
    assert f"got {option}, expected a whole number" in done.stderr


@needs_make
class TestLocalProcesses:
    def start(self, venv: Path, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return launch("local_processes", *words, VENV=str(venv), **changes)

    def test_tells_each_its_place_and_marks_the_lines_of_others(self, venv: Path) -> None:
        # Lines in one write each: pieces of them, as print writes unbuffered, would mix.
        code = WHO + (
            "names = ('DMD2_COORDINATOR', 'DMD2_NUM_PROCESSES', 'XLA_FLAGS'); "
            "told = [os.environ[name] for name in names]"
            "; sys.stdout.write(' '.join([str(i), *told, str(sys.argv[4:])]) + '\\n')"
            "; sys.stdout.write('no newline' if i else '')"
        )
        done = self.start(venv, "--processes=3", "--devices_per_process=4", code, "a b", "")
        assert done.returncode == 0, done.stderr
        own, first, second = (
            sorted(re.findall(rf"^{mark}(\d 127.*)$", done.stdout, re.M))
            for mark in ("", r"\[1\] ", r"\[2\] ")
        )
        for number, lines in enumerate((own, first, second)):
            [line] = lines
            assert line.startswith(f"{number} 127.0.0.1:")
            assert line.endswith(" 3 --xla_force_host_platform_device_count=4 ['a b', '']")
        assert len({line.split()[1] for line in own + first + second}) == 1
        assert "[2] no newline\n" in done.stdout

    def test_names_the_process_that_failed_and_stops_the_rest(self, venv: Path) -> None:
        # Neither their own end nor the end of the grace comes before a busy machine is through.
        code = WHO + "i != 1 or sys.exit(7); time.sleep(120)"
        begin = time.monotonic()
        done = self.start(venv, "--processes=3", "--grace=120", code, "a b")
        assert done.returncode == 7
        assert time.monotonic() - begin < 60
        assert "process 1 of 3 ended with exit code 7" in done.stderr
        resume = done.stderr.splitlines()[-1]
        assert shlex.split(resume)[1:] == ["--processes=3", "--grace=120", code, "a b"]

    def test_kills_what_does_not_heed_the_request_to_stop(self, venv: Path) -> None:
        code = WHO + (
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            "time.sleep(0.5); i != 0 or os.kill(os.getpid(), 9); time.sleep(120)"
        )
        begin = time.monotonic()
        done = self.start(venv, "--grace=1", code)
        assert done.returncode == 137
        assert time.monotonic() - begin < 60
        assert "process 0 of 2 ended with exit code 137" in done.stderr

    @pytest.mark.parametrize(
        ("number", "saved", "expected"),
        [(signal.SIGTERM, 0, 0), (signal.SIGTERM, 75, 75), (signal.SIGINT, 0, 130)],
    )
    def test_passes_a_signal_on_and_waits(
        self, venv: Path, number: signal.Signals, saved: int, expected: int
    ) -> None:
        script = ROOT / "launch" / "local_processes.sh"
        with subprocess.Popen(
            [script, WAITS.format(saved=saved)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=variables(VENV=str(venv), DMD2_EXIT_WHEN_SAVED=str(saved)),
            # A suite in the background ignores SIGINT, as would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            assert sorted(process.stdout.readline() for _ in range(2)) == ["[1] ready\n", "ready\n"]
            process.send_signal(number)
            out, err = process.communicate(timeout=120)
        assert process.returncode == expected
        assert (out, err) == ("", "")


@needs_make
def test_local_processes_train_one_teacher(tmp_path: Path) -> None:
    folder, run = environment(tmp_path, 'exec {python} "$@"'), tmp_path / "run"
    words = ["train-teacher", "--config=tests/tiny.py", f"--workdir={run}"]
    words += ["--config.teacher.steps=2", "--config.mesh.data=2"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(cache_folder())}
    with subprocess.Popen(
        [ROOT / "launch" / "local_processes.sh", "--devices_per_process=1", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables(VENV=str(folder), **cache),
    ) as process:
        text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert f"\nteacher: {run}/teacher.safetensors\n" in text
    assert "[1] teacher:" not in text
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2]
