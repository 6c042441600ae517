"""Files that are there whole or not at all."""

import errno
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dmd2_jax.runtime.whole_file import (
    NoRoom,
    clear_partial,
    room_for,
    scratch_folder,
    whole_file,
    whole_folder,
)


def test_whole_file_replaces_the_target_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    target.write_text("old")
    with whole_file(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_whole_file_leaves_the_target_alone_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    target.write_text("old")

    def write() -> None:
        with whole_file(target) as partial:
            partial.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_clear_partial_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("weights.bin", ".hidden", "a.partial.bin")]
    for file in kept:
        file.write_text("keep me")
    context = whole_file(tmp_path / "weights.bin")
    partial = context.__enter__()  # and never left, as by SIGKILL
    partial.write_text("half")
    clear_partial(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_what_killed_processes_of_this_host_left_goes_and_nothing_else(tmp_path: Path) -> None:
    host, dead = socket.gethostname(), _ended_process()
    gone = [f".a.{host}.{dead}.7.partial.png", f".b.{host}.{dead}.7.partial"]
    kept = [
        f".a.elsewhere.{dead}.7.partial.png",
        f".a.{host}.{os.getppid()}.7.partial.png",
        f".a.{host}.{os.getpid()}.7.partial.png",
        f"a.{host}.{dead}.7.partial.png",
        f".a.{host}.{dead}.partial",
    ]
    for name in [gone[0], *kept]:
        (tmp_path / name).write_text("half")
    (tmp_path / gone[1] / "unet").mkdir(parents=True)
    (tmp_path / gone[1] / "unet" / "half.bin").write_text("half")
    (tmp_path / f".c.{host}.{dead}.7.partial").symlink_to(tmp_path / kept[3])
    with whole_file(tmp_path / "new") as partial:
        assert {it.name for it in tmp_path.iterdir()} == set(kept)
        partial.write_text("whole")
    clear_partial(tmp_path)
    assert {it.name for it in tmp_path.iterdir()} == {*kept, "new"} - {kept[2]}


def test_scratch_folders_are_apart_and_go(tmp_path: Path) -> None:
    with scratch_folder("x", tmp_path) as first, scratch_folder("x", tmp_path) as second:
        assert first != second and socket.gethostname() in first.name
        assert f".{os.getpid()}." in first.name and first.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError("100000 requested and 2032 written"),  # of numpy.save
        RuntimeError("write() failed: No space left on device; writing x; at byte 16384"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
        NoRoom(errno.ENOSPC, ".hidden.partial/x.safetensors cannot be written"),
    ],
)
def test_a_full_disk_is_known_by_what_libraries_say_of_it(error: Exception, tmp_path: Path) -> None:
    said = rf"^{tmp_path}/whole cannot be written \(No space left on device\), expected room"
    with pytest.raises(NoRoom, match=said), whole_folder(tmp_path / "whole"):
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("writer", [whole_file, whole_folder, room_for])
def test_a_full_disk_is_said_with_the_path_and_what_helps(
    tmp_path: Path, writer: Callable, number: int
) -> None:
    def write() -> None:
        with writer(tmp_path / "grid.png"), room_for("inside"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(NoRoom, match=rf"{os.strerror(number)}.*free some.*another disk") as caught:
        write()
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="^x$"), whole_file(tmp_path / "grid.png"):
        raise PermissionError("x")


def test_whole_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "student"
    with whole_folder(target) as partial:
        (partial / "unet").mkdir()
        (partial / "unet" / "config.json").write_text("{}")
        assert not target.exists()
    assert (target / "unet" / "config.json").read_text() == "{}"
    assert list(tmp_path.iterdir()) == [target]


def test_whole_folder_leaves_nothing_on_failure(tmp_path: Path) -> None:
    def write() -> None:
        with whole_folder(tmp_path / "student") as partial:
            (partial / "half.json").write_text("{")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_whole_folder_takes_the_place_of_no_folder_with_files(tmp_path: Path) -> None:
    target = tmp_path / "student"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")

    def write() -> None:
        with whole_folder(target) as partial:
            (partial / "new").write_text("new")

    with pytest.raises(OSError):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["student", "thesis.txt"]


def _ended_process() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid
