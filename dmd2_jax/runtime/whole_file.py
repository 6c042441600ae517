"""Write a file or a folder whole or not at all, on this machine or in a bucket.

In a bucket a file appears when all of it has arrived, so one upload is enough; a folder is none
there, and its files come one after the other, those that say what it is last.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from dmd2_jax.runtime.places import in_bucket, local, path_of, upload

__all__ = ["clear_partial", "upload_folder", "whole_file", "whole_folder"]


@contextlib.contextmanager
def whole_file(target: str | os.PathLike) -> Iterator[Path]:
    """Give a name to write to; when the body ends, that file takes the target's place at once.

    Args:
      target: the file; replaced if it exists, left alone if the body or the disk fails.

    Yields:
      A path of this machine with the same suffix, in the same folder if that is of this machine.

    Raises:
      OSError: if the disk or the bucket refuses.
    """
    if in_bucket(target):
        with tempfile.TemporaryDirectory() as scratch:
            partial = Path(scratch, path_of(target).name)
            yield partial
            upload(partial, target)
        return
    target = local(target)
    partial = target.with_name(f".{target.stem}.{_writer()}.partial{target.suffix}")
    try:
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
      OSError: if the disk or the bucket refuses, or the target is not empty.
    """
    if in_bucket(target):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
            upload_folder(Path(scratch), target)
        return
    target = local(target).absolute()
    partial = target.with_name(f".{target.name}.{_writer()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def upload_folder(folder: Path, target: str | os.PathLike) -> None:
    """Put the files of a folder of this machine into a bucket, its own .json last.

    Raises:
      OSError: if the bucket refuses.
    """
    for path in sorted(folder.rglob("*"), key=_describes):
        if path.is_file():
            upload(path, path_of(target) / path.relative_to(folder).as_posix())


def clear_partial(folder: Path) -> None:
    """Remove what `whole_file` left in a folder when its process was killed.

    Args:
      folder: one that nobody else writes to at the moment.
    """
    if in_bucket(folder):
        return
    for left in folder.glob(".*.partial.*"):
        left.unlink(missing_ok=True)


def _writer() -> str:
    """Return who writes, as no other machine, process or thread that shares the disk is called."""
    host = socket.gethostname().replace(os.sep, "_")
    return f"{host}.{os.getpid()}.{threading.get_ident()}"


def _describes(path: Path) -> tuple[bool, int, str]:
    """Order files so that those are last which say what a folder is: its own .json."""
    return path.suffix == ".json", -len(path.parts), str(path)
