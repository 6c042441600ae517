"""Disks that fill while a command writes: a small file system, or a limit to a file's size."""

import contextlib
import functools
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tests.chaos.engine import BAD, GOOD, LOST, Try, command, fine, outcome
from tests.chaos.runs import halted
from tests.commands.test_kill import good_steps
from tests.commands.test_owner import WRITERS
from tests.tiny import contents, scratch, student_run, teacher_run

NAME = "a disk that fills"
TRIES = 28


@functools.cache
def _can_mount() -> bool:
    folder = scratch()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(words, check=False, capture_output=True).returncode:
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    subprocess.run(words, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _sized(folder: Path, kilobytes: int) -> None:
    options = f"remount,size={kilobytes}k"
    subprocess.run(["mount", "-o", options, str(folder)], check=True)


@contextlib.contextmanager
def _small_files(most: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def attempt(dice: random.Random, folder: Path) -> Try:
    """Let a disk fill, then have room again, and give the same command once more."""
    disk = folder / "disk"
    disk.mkdir()
    if not _can_mount() or dice.random() < 0.3:
        return _tried(
            dice,
            disk,
            small=lambda: _small_files(dice.choice([4_000, 40_000]) * dice.randint(1, 5)),
        )
    with _small_disk(disk):

        @contextlib.contextmanager
        def small() -> Iterator[None]:
            used = shutil.disk_usage(disk).used // 1024
            _sized(disk, used + 4 * dice.randint(1, dice.choice([8, 32, 250])))
            try:
                yield
            finally:
                _sized(disk, 64 * 1024)

        return _tried(dice, disk, small=small)


def _tried(dice: random.Random, disk: Path, small) -> Try:
    name = dice.choice(["run", "run", "pairs", "sample", "convert", "report"])
    words, done, sound = _prepared(name, dice, disk)
    plenty = mock.patch(
        "dmd2_jax.run.folder.shutil.disk_usage",
        return_value=type("Usage", (), {"free": 10**12}),
    )
    # The command looks before it begins, which is not what is tried.
    with small(), plenty:
        said = command(*words)
    it = outcome(said, done, sound)
    if it in BAD:
        return Try(f"{name}", it, said.text)
    again = command(*words)
    if again.code != 0 or not done():
        return Try(f"{name}, and again", LOST, f"{said.text}\n{again.text}")
    assert it in GOOD
    return Try(name, it, said.text)


def _prepared(name: str, dice: random.Random, disk: Path):
    """Return the command, whether it has made what it should, whether nothing is lost."""
    if name == "run":
        run = halted(disk, dice)
        steps = good_steps(run.workdir)
        return run.words, run.same, lambda: good_steps(run.workdir)[-len(steps) :] == steps
    out = disk / "out"
    if name == "pairs":
        return WRITERS["make-pairs"](out), lambda: contents(out) == _pairs(), lambda: True
    if name == "sample":
        ending = dice.choice(["", ".npz", ".zip", ".png"])
        out = disk / f"out{ending}"
        words = ("sample", f"--workdir={student_run()}", "--num=40", f"--out={out}")
        return words, lambda: _content(out) == _samples(ending), lambda: not _half(out)
    if name == "convert":
        out = disk / f"out{dice.choice(['.bin', '.safetensors'])}"
        words = ("convert", teacher_run(), out, "--force")
        return words, lambda: out.stat().st_size > 40_000, lambda: not out.exists()
    out = disk / "report.html"
    words = ("report", f"--workdir={student_run()}", f"--out={out}")
    return words, lambda: b"</html>" in out.read_bytes(), lambda: not out.exists()


def _half(out: Path) -> bool:
    return out.is_file()


def _content(out: Path) -> object:
    return contents(out) if out.is_dir() else out.read_bytes()


@functools.cache
def _pairs() -> dict[str, bytes]:
    out = scratch() / "out"
    fine(*WRITERS["make-pairs"](out))
    return contents(out)


@functools.cache
def _samples(ending: str) -> object:
    out = scratch() / f"out{ending}"
    fine("sample", f"--workdir={student_run()}", "--num=40", f"--out={out}")
    return _content(out)
