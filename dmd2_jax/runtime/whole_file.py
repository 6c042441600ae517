"""Write a file or a folder whole or not at all, on this machine or in a bucket.

What is not whole yet has a name that says on which host, by which process and thread it is written.
A killed process leaves it; the next one on that host that writes in the same folder removes it.

In a bucket a file appears when all of it has arrived, so one upload is enough; a folder is none
there, and its files come one after the other, those that say what it is last.
"""

import contextlib
import errno
import itertools
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from dmd2_jax.runtime.places import in_bucket, local, path_of, upload

__all__ = [
    "NoRoom",
    "clear_partial",
    "room_for",
    "scratch_folder",
    "upload_folder",
    "whole_file",
    "whole_folder",
]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHORT = re.compile(r"\d+ requested and \d+ written")
_numbers = itertools.count()
_cleared: set[Path] = set()


class NoRoom(OSError):
    """A disk or a quota is full."""

    def __str__(self) -> str:
        """Return what was to be written, and what helps."""
        return str(self.strerror)


@contextlib.contextmanager
def room_for(target: str | os.PathLike) -> Iterator[None]:
    """Say what was being written, and what helps, where the disk or a quota is full.

    Args:
      target: what the body writes; of a file in a folder that is written whole, the folder is
        named, which has its own name when it is whole.

    Raises:
      NoRoom: in place of the disk's own error.
    """
    try:
        yield
    except Exception as error:
        number = _full(error)
        if number is None:
            raise
        raise NoRoom(
            number,
            f"{os.fspath(target)} cannot be written ({os.strerror(number)}), expected room on "
            "its disk and in your quota; free some, or choose a place on another disk, and run the "
            "same command again. What was there before is untouched.",
        ) from error


@contextlib.contextmanager
def whole_file(target: str | os.PathLike) -> Iterator[Path]:
    """Give a name to write to; when the body ends, that file takes the target's place at once.

    Args:
      target: the file; replaced if it exists, left alone if the body or the disk fails.

    Yields:
      A path of this machine with the same suffix, in the same folder if that is of this machine.

    Raises:
      NoRoom: if the disk is full.
      OSError: if the disk or the bucket refuses.
    """
    if in_bucket(target):
        with scratch_folder("upload") as scratch, room_for(scratch):
            partial = scratch / path_of(target).name
            yield partial
            upload(partial, target)
        return
    target = local(target)
    _clear_once(target.parent)
    partial = target.with_name(f".{target.stem}.{_writer()}.partial{target.suffix}")
    try:
        with room_for(target):
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(target: str | os.PathLike) -> Iterator[Path]:
    """Give a folder to write into; when the body ends, it takes the target's place at once.

    Args:
      target: the folder, which does not exist or is empty; left alone if the body or the disk
        fails.

    Yields:
      A new folder, beside it if that is of this machine.

    Raises:
      NoRoom: if the disk is full.
      OSError: if the disk or the bucket refuses, or the target is not empty.
    """
    if in_bucket(target):
        with scratch_folder("upload") as scratch, room_for(scratch):
            yield scratch
            upload_folder(scratch, target)
        return
    target = local(target).absolute()
    _clear_once(target.parent)
    partial = target.with_name(f".{target.name}.{_writer()}.partial")
    try:
        with room_for(target):
            partial.mkdir(parents=True)
            yield partial
            for path in partial.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(purpose: str, parent: str | os.PathLike | None = None) -> Iterator[Path]:
    """Give an empty folder that goes with the body.

    Args:
      purpose: a word for its name.
      parent: of this machine; None: where the system has temporary files.

    Raises:
      OSError: if the disk refuses.
    """
    place = Path(tempfile.gettempdir() if parent is None else parent)
    _clear_once(place)
    folder = place / f".dmd2_{purpose}_{next(_numbers)}.{_writer()}.partial"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def upload_folder(folder: Path, target: str | os.PathLike) -> None:
    """Put the files of a folder of this machine into a bucket, its own .json last.

    Raises:
      OSError: if the bucket refuses.
    """
    for path in sorted(folder.rglob("*"), key=_describes):
        if path.is_file():
            upload(path, path_of(target) / path.relative_to(folder).as_posix())


def clear_partial(folder: Path) -> None:
    """Remove what killed processes of this host, and this process before, left in a folder.

    What belongs to a living process or to another host stays.

    Args:
      folder: one that this process does not write to at the moment.
    """
    _clear(folder, but_own=False)


def _full(error: Exception) -> int | None:
    """Return the number of a full disk's or quota's error; None: it is another.

    Libraries in Rust and C++ (safetensors, array_record) say it in an error of another class, and
    NumPy's `save` counts what it has written.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _FULL else None
    said = str(error)
    if _SHORT.fullmatch(said):
        return errno.ENOSPC
    return next((number for number in _FULL if os.strerror(number) in said), None)


def _clear_once(folder: Path) -> None:
    """Remove what killed processes of this host left, when this process first writes there."""
    place = folder.absolute()
    if place not in _cleared:
        _cleared.add(place)
        _clear(place, but_own=True)


def _clear(folder: Path, but_own: bool) -> None:
    if in_bucket(folder) or not folder.is_dir():
        return
    named = re.compile(rf"\..*\.{re.escape(_host())}\.(\d+)\.\d+\.partial(\.[^.]*)?")
    for entry in os.scandir(folder):
        found = named.fullmatch(entry.name)
        if found is None or _lives(int(found[1]), but_own):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # another user's
                os.unlink(entry.path)


def _lives(process: int, but_own: bool) -> bool:
    """Return whether what a process of this host writes is to stay."""
    if process == os.getpid():
        return but_own
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


def _writer() -> str:
    """Return who writes, as no other machine, process or thread that shares the disk is called."""
    return f"{_host()}.{os.getpid()}.{threading.get_ident()}"


def _host() -> str:
    return socket.gethostname().replace(os.sep, "_")


def _describes(path: Path) -> tuple[bool, int, str]:
    """Order files so that those are last which say what a folder is: its own .json."""
    return path.suffix == ".json", -len(path.parts), str(path)
