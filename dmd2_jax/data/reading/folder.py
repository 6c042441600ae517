"""The files below a folder, by name."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from dmd2_jax.config.refused import Refused

Wanted = Callable[[str], bool]
"""Whether a file of this name is one of those to list."""


class FileTree(Protocol):
    """Files with names like "train/cat/1.png".

    Attributes:
      place: the folder or zip, for messages.
      names: sorted; "/" between folders.
    """

    place: str
    names: list[str]

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's bytes.

        Raises:
          ValueError: if it has more than `limit` bytes.
        """


class Folder:
    """A `FileTree` on disk. Hidden files are left out; links to folders are not followed."""

    def __init__(self, path: str | Path, wanted: Wanted) -> None:
        """List the wanted files below `path`."""
        self.place = str(path)
        self.names = sorted(name for name in self._walk() if wanted(name) and not hidden(name))

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's bytes; see `FileTree`."""
        with open(os.path.join(self.place, name), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Refused(
                f"{self.place}/{name} has more than {limit:,} bytes, expected at most that; "
                "remove the file if it is no part of the data set."
            )
        return data

    def _walk(self) -> Iterator[str]:
        for folder, _, files in os.walk(self.place):
            base = os.path.relpath(folder, self.place).replace(os.sep, "/")
            prefix = "" if base == "." else base + "/"
            yield from (prefix + name for name in files)


def hidden(name: str) -> bool:
    """Return whether a file is one that systems put beside the user's own."""
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
