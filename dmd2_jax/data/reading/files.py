"""The files of a source: names, sizes and, on request, digests of their bytes."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from dmd2_jax.data.reading.classes import listing_of_parts, shown
from dmd2_jax.runtime.seal import digest, file_digest

__all__ = ["Files", "files_of", "files_of_shards"]

_THREADS = 16  # a network disk answers many at a time
_PART = 1000
_FIRST = 3

T = TypeVar("T")


class Files(NamedTuple):
    """Files that examples come from, in order.

    Attributes:
      names: relative to the data, "/" between folders.
      sizes: bytes of each.
      digests: of the bytes of each; (): not asked for.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    digests: tuple[str, ...] = ()

    @property
    def by_size(self) -> str:
        """A digest of names and sizes."""
        return _digest(f"{size} {name}" for name, size in zip(self.names, self.sizes, strict=True))

    @property
    def by_content(self) -> str:
        """A digest of names and bytes; "": not asked for."""
        pairs = zip(self.names, self.digests, strict=False)
        return _digest(f"{each} {name}" for name, each in pairs) if self.digests else ""

    def since(self, before: "Files") -> list[str]:
        """Say how many files were added, are gone and have changed, and the first names."""
        ours, theirs = _by_name(self), _by_name(before)
        shared = [name for name in self.names if name in theirs]
        resized = [name for name in shared if ours[name][0] != theirs[name][0]]
        rewritten = [
            name
            for name in shared
            if ours[name][0] == theirs[name][0]
            and "" not in (ours[name][1], theirs[name][1])
            and ours[name][1] != theirs[name][1]
        ]
        kinds = {
            "added": [name for name in self.names if name not in theirs],
            "gone": [name for name in before.names if name not in ours],
            "of another size": resized,
            "of the same size with other bytes": rewritten,
        }
        return [f"{len(found):,} {kind} ({_some(found)})" for kind, found in kinds.items() if found]


def files_of(
    names: Sequence[str],
    how: str,
    size_of: Callable[[int], int],
    read: Callable[[int], bytes],
) -> Files | None:
    """Look at every file.

    Args:
      names: of the files.
      how: see `Options.digest`.
      size_of: number -> bytes; called from several threads, as `read` is.
      read: number -> content.

    Returns:
      The files; None where their names alone are to count.

    Raises:
      OSError: if one is not there any more.
    """
    if how == "names":
        return None
    sizes = _each(size_of, len(names), _PART)
    digests: list[str] = []
    if how == "contents":
        digests = _each(lambda i: digest(read(i)), len(names), 16)
    return Files(tuple(names), tuple(sizes), tuple(digests))


def files_of_shards(paths: Sequence[str], how: str) -> Files | None:
    """Look at files of many examples; see `files_of`."""
    if how == "names":
        return None
    sizes = tuple(Path(path).stat().st_size for path in paths)
    found = tuple(map(file_digest, paths)) if how == "contents" else ()
    return Files(tuple(Path(path).name for path in paths), sizes, found)


def _each(function: Callable[[int], T], count: int, part: int) -> list[T]:
    """Return a function's values of 0 .. count - 1, from several threads."""

    def some(begin: int) -> list[T]:
        return [function(i) for i in range(begin, min(begin + part, count))]

    with ThreadPoolExecutor(_THREADS, "files") as pool:
        return [value for values in pool.map(some, range(0, count, part)) for value in values]


def _by_name(files: Files) -> dict[str, tuple[int, str]]:
    digests = files.digests or ("",) * len(files.names)
    return dict(zip(files.names, zip(files.sizes, digests, strict=True), strict=True))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FIRST:,} more" if len(names) > _FIRST else ""
    return ", ".join(shown(name) for name in names[:_FIRST]) + more


def _digest(lines: Iterable[str]) -> str:
    return listing_of_parts(lines).digest
