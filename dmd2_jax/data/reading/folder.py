"""The files below a folder, by name."""

import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from dmd2_jax.config.refused import Refused

_LOG = logging.getLogger(__name__)

Wanted = Callable[[str], bool]
"""Whether a file of this name is one of those to list."""

_LINK = "links to folders, which are not followed"
_EMPTY = "empty folders, which are no classes"
_KINDS = 10  # that are named
_said: set[str] = set()


class TooLargeError(Refused):
    """A file of more bytes than one of its kind may have, or one that has no end."""


class FileTree(Protocol):
    """Files with names like "train/cat/1.png".

    Attributes:
      place: the folder or zip, for messages.
      names: sorted; "/" between folders.
      others: of the files that are not listed: their ending -> how many.
      links: those of `names` that are links, which may lead anywhere: a user's data are where the
        user has put them.
    """

    place: str
    names: list[str]
    others: Counter[str]
    links: list[str]

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's bytes.

        Raises:
          TooLargeError: if it has more than `limit` bytes.
        """

    def size(self, name: str) -> int:
        """Return how many bytes a file has."""


class Folder:
    """A `FileTree` on disk. Hidden files are left out; links to folders are not followed.

    Links to files are: what they lead to is read, and its size and bytes are what is listed.
    """

    def __init__(self, path: str | Path, wanted: Wanted) -> None:
        """List the wanted files below `path`.

        Raises:
          OSError: if a folder cannot be listed.
        """
        self.place = str(path)
        self.names: list[str] = []
        self.others: Counter[str] = Counter()
        self.links: list[str] = []
        for name, is_link in self._walk():
            if wanted(name):
                self.names.append(name)
                self.links += [name] if is_link else []
            else:
                self.others[ending(name)] += 1
        self.names.sort()
        self.links.sort()

    def read(self, name: str, limit: int) -> bytes:
        """Return a file's bytes; see `FileTree`."""
        with open(os.path.join(self.place, name), "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TooLargeError(
                    f"{self.place}/{name} is a pipe or a device, expected a file; remove it."
                )
            data = file.read(limit + 1)
        if len(data) > limit:
            raise TooLargeError(
                f"{self.place}/{name} has more than {limit:,} bytes, expected at most that; "
                "remove the file if it is no part of the data set."
            )
        return data

    def size(self, name: str) -> int:
        """Return how many bytes a file has; see `FileTree`."""
        return os.stat(os.path.join(self.place, name)).st_size

    def _walk(self) -> Iterator[tuple[str, bool]]:
        """Yield (name, whether it is a link) of every file that is not hidden."""
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            with os.scandir(os.path.join(self.place, prefix)) as found:
                entries = list(found)
            folders = [it for it in entries if it.is_dir() and not hidden(it.name)]
            files = [it for it in entries if not it.is_dir()]
            links = sum(it.is_symlink() for it in folders)
            self.others.update({_LINK: links} if links else {})
            self.others.update({_EMPTY: 1} if prefix and not (folders or files) else {})
            yield from ((prefix + it.name, it.is_symlink()) for it in files if not hidden(it.name))
            waiting += [f"{prefix}{it.name}/" for it in folders if not it.is_symlink()]


def _at_once(path: str, flags: int) -> int:
    """Open a file; a pipe too, which would wait for a writer otherwise."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def hidden(name: str) -> bool:
    """Return whether a file is one that systems put beside the user's own."""
    return any(part.startswith((".", "__MACOSX", "lost+found")) for part in name.split("/"))


def ending(name: str) -> str:
    """Return what a file's name ends in: ".png", in small letters, or ""."""
    return os.path.splitext(name.rpartition("/")[-1])[1].lower()


def listed_endings(others: Counter[str]) -> str:
    """Return "9 .heic, 3 .txt" of the files that a tree has beside those that it lists."""
    kinds = sorted(others.items(), key=lambda pair: (-pair[1], pair[0] or "~"))
    said = [f"{n:,} {kind or 'without an ending'}" for kind, n in kinds[:_KINDS]]
    rest = sum(n for _, n in kinds[_KINDS:])
    return ", ".join([*said, f"{rest:,} of other kinds"] if rest else said)


def warn_of_left_out(tree: FileTree, read: str) -> None:
    """Say once how many files of a tree are not read, and of which kinds; and how many are links.

    Args:
      tree: whose `others` are left out.
      read: what is read instead.
    """
    if tree.links:
        first = os.path.join(tree.place, tree.links[0])
        _warn_once(
            f"{tree.place}: {len(tree.links):,} of {len(tree.names):,} files are links, which are "
            f"followed wherever they lead; {tree.links[0]} leads to {os.path.realpath(first)}."
        )
    if tree.others:
        _warn_once(
            f"{tree.place}: left out {tree.others.total():,}: {listed_endings(tree.others)}; read "
            f"are {read}."
        )


def _warn_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _LOG.warning("%s", message)
