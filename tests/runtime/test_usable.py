"""What a user can mend of a place is one line, and of an output said before any work."""

import errno
import os
from pathlib import Path

import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.usable import check_output, mendable
from tests.tiny import refused, teacher_run


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "x cannot be read or written (Permission denied), expected a place that"),
        (errno.EROFS, "x cannot be read or written (Read-only file system), expected a place"),
        (errno.ENOENT, "x is not there, expected a file or folder; mind its name"),
        (errno.EISDIR, "x is a folder, expected a file; move it away"),
        (errno.ENOTDIR, "x is a file, or lies below one, expected a folder"),
        (errno.ENAMETOOLONG, "x has too long a name"),
        (errno.EIO, ""),
        (errno.ENOSPC, ""),
    ],
)
def test_mendable_errors_name_the_path_and_the_remedy(number: int, said: str) -> None:
    assert mendable(OSError(number, os.strerror(number), "x")).startswith(said)
    assert mendable(OSError(number, os.strerror(number), b"y", None, "x")).startswith(said)
    assert not mendable(OSError(number, os.strerror(number)))
    assert bool(said) == bool(mendable(OSError(number, os.strerror(number), "x")))


def test_check_output_says_what_is_in_the_way_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "x.png").mkdir()
    check_output(tmp_path / "new" / "deep" / "x.png", is_file=True)
    check_output(tmp_path / "file", is_file=True)
    check_output(tmp_path / "x.png", is_file=False)
    check_output(tmp_path / "x.png")
    check_output("gs://bucket/x.png", is_file=True)
    with pytest.raises(Refused, match=r"x\.png is a folder, expected a file"):
        check_output(tmp_path / "x.png", is_file=True)
    with pytest.raises(Refused, match="file is a file, or lies below one"):
        check_output(tmp_path / "file", is_file=False)
    with pytest.raises(Refused, match="file is a file, or lies below one"):
        check_output(tmp_path / "file" / "deep" / "x.png")
    with pytest.raises(Refused, match="/dev/null is a pipe, a socket or a device"):
        check_output("/dev/null", is_file=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "x.png"]


def test_check_output_refuses_a_folder_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(Refused, match=r"cannot be read or written \(Permission denied\)"):
        check_output(tmp_path / "new" / "x.png")


OUTPUTS = {
    "report": ["--workdir=R", "--out=D/x.html"],
    "sample": ["--workdir=R", "--num=2", "--out=D/x.png"],
    "evaluate": ["--workdir=R", "--out=D/x.json"],
    "export": ["--workdir=R", "--out=D/x"],
    "convert": ["R", "D/x.safetensors"],
    "data": ["--config=R/recipe.py", "--write=D/x"],
    "make-pairs": ["--config=R/recipe.py", "--out=D/x"],
    "cache": ["--pipeline=R", "--prompts=p.txt", "--out=D/x"],
    "new": ["--data=R", "--out=D/x.py"],
    "verify": ["--pipeline=R", "--out=D/x.png"],
}


@pytest.mark.parametrize("command", OUTPUTS)
def test_every_command_refuses_an_output_below_a_file_before_work(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "D").touch()
    words = [word.replace("=D", f"={tmp_path}/D") for word in OUTPUTS[command]]
    words = [f"{tmp_path}/{word}" if word.startswith("D/") else word for word in words]
    message = refused(capsys, command, *words)  # before anything is read: there is no R
    assert f"{tmp_path}/D is a file, or lies below one, expected a folder" in message


def test_an_error_of_a_disk_that_a_user_can_mend_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x.png"))

    monkeypatch.setattr("dmd2_jax.commands.report.write.whole_file", denied)
    words = ("report", f"--workdir={teacher_run()}", f"--out={tmp_path / 'x.html'}")
    message = refused(capsys, *words)
    assert message.rstrip().endswith("mind its permissions, or choose another.")
    assert f"dmd2: {tmp_path / 'x.png'} cannot be read or written (Permission denied)" in message
