"""One seal for everything that is kept: BLAKE2b of bytes, of files, of JSON that says it itself.

Damaged and unreadable are two things. What does not match its seal is damaged, and may be made
anew. What the disk does not hand over at the moment (no permission, an I/O error, a stale network
handle) may be sound: `check_reached` stops there, and nothing is touched.
"""

import errno
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dmd2_jax.runtime.fetched import fetched

__all__ = [
    "SEAL",
    "Unreachable",
    "canonical",
    "check_reached",
    "digest",
    "digests",
    "file_digest",
    "is_sealed",
    "seal",
]

SEAL = "seal"
"""The key under which sealed JSON has its own digest."""

_SIZE = 16
_THREADS = min(8, os.cpu_count() or 1)
_AHEAD = 16
_UNREACHED = frozenset(
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EREMOTEIO", "ENXIO")
    if hasattr(errno, name)
)
# Orbax's readers are C++: what they say of a disk is a text in an error of another class.
_SAID = ("PERMISSION_DENIED", *(os.strerror(number) for number in sorted(_UNREACHED)))


class Unreachable(OSError):
    """What is there cannot be read at the moment; it may be sound."""


def digest(content: bytes | memoryview) -> str:
    """Return the digest of bytes."""
    return hashlib.blake2b(content, digest_size=_SIZE).hexdigest()


def digests(contents: Iterable[bytes | memoryview]) -> Iterator[str]:
    """Yield the digest of each, in order; several threads make them.

    Args:
      contents: asked for a few ahead, so that not all need be there at once.
    """
    waiting: deque[Future[str]] = deque()
    with ThreadPoolExecutor(_THREADS, "digests") as pool:
        for content in contents:
            waiting.append(pool.submit(digest, content))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def file_digest(path: str | os.PathLike) -> str:
    """Return the digest of a file's bytes.

    Raises:
      OSError: if it cannot be read.
    """
    with fetched(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_SIZE)).hexdigest()


def canonical(content: Any) -> bytes:
    """Return the one text of what JSON can hold, for a digest."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON holds, as it will be read back, with the digest that protects it.

    Args:
      content: anything JSON can hold; an older seal in it is replaced.
    """
    plain = json.loads(json.dumps({key: content[key] for key in content if key != SEAL}))
    return plain | {SEAL: digest(canonical(plain))}


def is_sealed(content: Any) -> bool:
    """Return whether what was read is what `seal` made."""
    if not isinstance(content, dict) or not isinstance(content.get(SEAL), str):
        return False
    rest = {key: content[key] for key in content if key != SEAL}
    return content[SEAL] == digest(canonical(rest))


def check_reached(error: BaseException, path: str | os.PathLike) -> None:
    """Stop where the fault is the disk's and not the file's; return where it is the file's.

    Args:
      error: what reading raised.
      path: what was read.

    Raises:
      Unreachable: naming the path.
    """
    cause: BaseException | None = error
    while cause is not None:
        unreached = isinstance(cause, OSError) and cause.errno in _UNREACHED
        if unreached or any(text in str(cause) for text in _SAID):
            said = (str(error).splitlines() or [""])[0]
            raise Unreachable(
                f"{Path(path)} cannot be read at the moment ({type(error).__name__}: {said:.200}), "
                "expected a disk that hands it over; nothing was changed: mend the permission or "
                "the disk, and run the same command again."
            ) from error
        cause = cause.__cause__ or cause.__context__
