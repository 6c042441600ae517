"""A disk that fills while a command writes: which file it was, what helps, nothing half."""

import errno
import os
from pathlib import Path

import pytest

from tests.tiny import refused, student_run, teacher_run

COMMANDS = {
    "report": ("x.html", ["--workdir=S", "--out=O"]),
    "sample": ("x.png", ["--workdir=S", "--num=2", "--out=O"]),
    "convert": ("x.safetensors", ["T", "O"]),
    "export": ("x", ["--workdir=S", "--out=O"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_said_by_every_command_that_writes_one_output(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, words = COMMANDS[command]
    out, fsync = tmp_path / name, os.fsync
    places = {"S": student_run(), "T": teacher_run(), "O": out}

    def full(file: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}").startswith(str(tmp_path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    given = [
        f"{flag}{equals}{places.get(value, value)}" for flag, equals, value in map(_cut, words)
    ]
    message = refused(capsys, command, *given, code=1)
    assert f"dmd2: {out} cannot be written (No space left on device), expected room" in message
    assert "free some, or choose a place on another disk" in message
    assert not list(tmp_path.iterdir())


def _cut(word: str) -> tuple[str, str, str]:
    flag, equals, value = word.rpartition("=")
    return flag, equals, value
