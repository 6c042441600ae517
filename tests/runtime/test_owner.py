"""One process at a time writes to a folder."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime import owner
from dmd2_jax.runtime.owner import LEASE, LOCK, check_free, holds_nothing, owned


@pytest.fixture
def leased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every folder for one of a disk that machines share, and renew ten times a second."""
    monkeypatch.setattr(owner, "_by_lease", lambda folder: True)
    monkeypatch.setenv("DMD2_OWNER_SECONDS", "0.6")


@pytest.fixture(params=["lock", "lease"])
def either(request: pytest.FixtureRequest) -> None:
    if request.param == "lease":
        request.getfixturevalue("leased")


@pytest.mark.usefixtures("either")
def test_second_owner_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    named = rf"{tmp_path} is being written to by process {os.getpid()} on .*choose another folder"
    with owned(tmp_path):
        for _ in range(2):  # being refused takes nothing from the owner
            with pytest.raises(Refused, match=named), owned(tmp_path):
                raise AssertionError
            with pytest.raises(Refused, match=named):
                check_free(tmp_path)
    check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path):
        assert [it.name for it in tmp_path.iterdir()] in ([LOCK], [LEASE])


@pytest.mark.usefixtures("either")
def test_folder_is_free_after_an_error_and_a_new_one_is_gone(tmp_path: Path) -> None:
    with pytest.raises(KeyError), owned(tmp_path / "new"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("either")
def test_what_a_killed_owner_left_is_said_and_taken(tmp_path: Path, capsys: Any) -> None:
    noted = {"host": "far", "process": 7, "command": "dmd2 distill", "since": "2026-01-01 00:00:00"}
    for name in (LOCK, LEASE):
        (tmp_path / name).write_text(json.dumps({**noted, "lease": "x", "beat": 3}))
    check_free(tmp_path)
    with owned(tmp_path):
        said = capsys.readouterr().err
    assert "process 7 on far (dmd2 distill, since 2026-01-01 00:00:00) ended without" in said


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("note", ["[" * 100_000, '{"host": "\\u001b[2J", "beat": []}', "3", "\0"])
def test_a_note_of_anything_is_nobodys(note: str, tmp_path: Path, capsys: Any) -> None:
    for name in (LOCK, LEASE):
        (tmp_path / name).write_text(note)
    with owned(tmp_path):
        assert "\x1b" not in capsys.readouterr().err


@pytest.mark.usefixtures("leased")
def test_lease_that_another_took_ends_the_process_before_it_writes(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def end(code: int) -> None:
        assert code == 1
        ended.set()
        raise OSError  # as it does not return

    monkeypatch.setattr(os, "_exit", end)
    theirs = json.dumps({"host": "far", "process": 7, "lease": "theirs", "beat": 0})
    with owned(tmp_path):
        partial = tmp_path / "partial"
        partial.write_text(theirs)
        partial.replace(tmp_path / LEASE)
        assert ended.wait(10)
    assert f"{tmp_path} was taken by process 7 on far" in capsys.readouterr().err
    assert (tmp_path / LEASE).read_text() == theirs


@pytest.mark.usefixtures("leased")
def test_of_two_that_come_at_once_one_has_the_folder(tmp_path: Path) -> None:
    got: list[str] = []

    def come() -> None:
        try:
            with owned(tmp_path):
                got.append("owned")
                time.sleep(2)
        except Refused:
            got.append("refused")

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["owned", "refused"]


def test_holds_nothing_does_not_count_the_owners_note(tmp_path: Path) -> None:
    assert holds_nothing(tmp_path / "none")
    (tmp_path / LOCK).touch()
    assert holds_nothing(tmp_path)
    (tmp_path / "file").touch()
    assert not holds_nothing(tmp_path)
    assert not holds_nothing(tmp_path / "file")


def test_owned_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="is a file, expected a folder"), owned(tmp_path / "file"):
        raise AssertionError


def test_kind_of_disk_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    near, far = tmp_path / "a b", tmp_path / "a"
    near.mkdir()
    mounts = tmp_path / "mounts"
    written = str(near).replace(" ", "\\040")
    mounts.write_text(f"x / ext4 rw 0 0\nx {tmp_path} nfs4 rw 0 0\nx {written} lustre rw 0 0\n")
    assert owner._kind_of_disk(near / "run", mounts) == "lustre"
    assert owner._kind_of_disk(far, mounts) == "nfs4"
    assert owner._kind_of_disk(Path("/"), mounts) == "ext4"
    assert owner._kind_of_disk(near, tmp_path / "none") == ""


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_stands_in_the_locks_place_is_refused_and_left_alone(
    kind: str, tmp_path: Path
) -> None:
    other, lock = tmp_path / "other", tmp_path / "run" / LOCK
    lock.parent.mkdir()
    if kind == "link":
        other.write_text("precious")
    if kind in ("link", "dangling"):
        lock.symlink_to(other)
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    with pytest.raises(Refused, match=r"\.owner is a (link or a folder|pipe)"), owned(lock.parent):
        raise AssertionError("not reached")
    if kind == "link":
        assert other.read_text() == "precious"
    else:
        assert not other.exists()
    if kind != "dangling":  # of which nothing is there to be read
        with pytest.raises(Refused, match=r"\.owner is a "):
            check_free(lock.parent)
