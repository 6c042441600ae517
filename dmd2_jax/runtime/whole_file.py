"""Write a file or a folder whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["clear_partial", "whole_file", "whole_folder"]


@contextlib.contextmanager
def whole_file(target: str | os.PathLike) -> Iterator[Path]:
    """Give a name to write to; when the body ends, that file takes the target's place at once.

    Args:
      target: the file; replaced if it exists, left alone if the body or the disk fails.

    Yields:
      A path in the same folder, with the same suffix.

    Raises:
      OSError: if the disk refuses.
    """
    target = Path(target)
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
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
      A new folder beside it.

    Raises:
      OSError: if the disk refuses, or the target is not empty.
    """
    target = Path(target).absolute()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
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


def clear_partial(folder: Path) -> None:
    """Remove what `whole_file` left in a folder when its process was killed.

    Args:
      folder: one that nobody else writes to at the moment.
    """
    for left in folder.glob(".*.partial.*"):
        left.unlink(missing_ok=True)
