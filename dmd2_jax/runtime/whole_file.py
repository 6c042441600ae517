"""Write a file whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["clear_partial", "whole_file"]


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


def clear_partial(folder: Path) -> None:
    """Remove what `whole_file` left in a folder when its process was killed.

    Args:
      folder: one that nobody else writes to at the moment.
    """
    for left in folder.glob(".*.partial.*"):
        left.unlink(missing_ok=True)
