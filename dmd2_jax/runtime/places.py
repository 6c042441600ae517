"""Where files lie: on this machine, or in a bucket, gs://BUCKET/... or s3://BUCKET/...

A text of a user's becomes a path in one of three ways:
  path_of   what is written and listed as it grows, such as a run folder
  fetched   what is only read (`runtime/fetched.py`): of a bucket, a copy on this machine
  local     what has to lie on this machine

What is written whole goes through `runtime/whole_file.py`, wherever it lies.
"""

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmd2_jax.config.refused import Missing, Refused, lacks

__all__ = [
    "absolute",
    "check_place",
    "client_of",
    "has_folder",
    "holds_checkpoints",
    "in_bucket",
    "local",
    "make_folder",
    "move_folder",
    "path_of",
    "reaching",
    "upload",
]

_CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}
"""The schemes of buckets, and the package that reaches each."""

# One slash is what pathlib.Path makes of two; a single letter is a disk of Windows.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//|/(?=[^/]))")


def in_bucket(path: str | os.PathLike) -> bool:
    """Return whether a path is one of a bucket."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in _CLIENTS))


def check_place(path: str | os.PathLike) -> None:
    """Refuse what is a path neither of this machine nor of a bucket that can be reached.

    Raises:
      Refused: if it is, or the bucket's client is not installed.
    """
    text = os.fspath(path)
    found = _SCHEME.match(text)
    if found is None:
        return
    scheme, slashes = found.groups()
    if scheme not in _CLIENTS:
        if slashes == "/":
            return  # a folder may be called so
        other = text.removeprefix("file://") if scheme == "file" else "a copy of it there"
        raise Refused(
            f"{text} is of {scheme}://, expected a path of this machine, gs://BUCKET/... or "
            f"s3://BUCKET/...; give {other}."
        )
    rest = text[found.end() :].lstrip("/")
    if slashes == "/":
        raise Refused(
            f"{text} has one slash after {scheme}:, expected {scheme}://{rest}; give it as text: "
            "pathlib.Path takes a slash away."
        )
    if not rest:
        raise Refused(f"{text} names no bucket, expected {scheme}://BUCKET/...; add it.")
    if not _installed(_CLIENTS[scheme]):
        raise Refused(f"{lacks(text, _CLIENTS[scheme], 'cloud')}, or give a path of this machine.")


def local(path: str | os.PathLike) -> Path:
    """Return a path of this machine.

    Raises:
      Refused: if it is one of a bucket, or of anything else.
    """
    check_place(path)
    if in_bucket(path):
        raise Refused(f"{path} lies in a bucket, expected a path of this machine; copy it there.")
    return Path(path)


def path_of(path: str | os.PathLike) -> Path:
    """Return a path of this machine or of a bucket.

    Raises:
      Refused: see `check_place`.
    """
    check_place(path)
    if not in_bucket(path):
        return Path(path)
    _set_up()
    from etils import epath

    return epath.Path(path)  # which has what is used of a Path


def absolute(path: str | os.PathLike) -> Path:
    """Return a path that does not depend on the working folder; one of a bucket never does."""
    here = path_of(path)
    return here if in_bucket(here) else here.absolute()


def make_folder(path: str | os.PathLike) -> None:
    """Make a folder and those above it; a bucket has none to be made.

    Raises:
      OSError: if the disk refuses.
    """
    if not in_bucket(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def holds_checkpoints(path: str | os.PathLike) -> bool:
    """Return whether Orbax can read and write at a path: it knows disks and gs://."""
    return not in_bucket(path) or os.fspath(path).startswith("gs://")


def has_folder(path: str | os.PathLike) -> bool:
    """Return whether a folder is there, or need not be, as in a bucket."""
    return in_bucket(path) or Path(path).is_dir()


def upload(file: Path, target: str | os.PathLike) -> None:
    """Put a file of this machine into a bucket, where it appears whole or not at all.

    Raises:
      OSError: if the bucket refuses.
    """
    client, key = client_of(target)
    with reaching(target):
        client.put_file(str(file), key)


def move_folder(folder: Path, target: Path) -> None:
    """Give a folder another name of the same disk or bucket.

    Raises:
      OSError: if the disk or the bucket refuses.
    """
    if not in_bucket(folder):
        folder.rename(target)
        return
    # A copy first: there is no renaming, and what clients call so may stop halfway.
    client, key = client_of(folder)
    with reaching(folder):
        client.copy(key, client_of(target)[1], recursive=True)
        client.rm(key, recursive=True)


def client_of(path: str | os.PathLike) -> tuple[Any, str]:
    """Return (the client of a path's bucket, the path as that names it)."""
    _set_up()
    from fsspec.core import url_to_fs

    return url_to_fs(os.fspath(path))


@contextlib.contextmanager
def reaching(path: str | os.PathLike) -> Iterator[None]:
    """Turn what a bucket's client raises into OSErrors that name the path.

    Raises:
      OSError: if anything is raised inside.
    """
    try:
        yield
    except Refused:
        raise
    except FileNotFoundError as error:
        raise Missing(f"{path} is not there, or its bucket is not; mind its name.") from error
    except Exception as error:  # the clients' errors have no common base
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise OSError(
            f"{path} cannot be reached ({reason}), expected a bucket that this account may use; "
            "check its name and log in (gcloud auth application-default login, aws configure)."
        ) from error


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# Where TensorFlow is installed, etils would take its client, which knows no s3://. It decides so
# once, at the first path that it is given: Orbax's may be that.
if any(map(_installed, _CLIENTS.values())):
    os.environ.setdefault("EPATH_USE_TF", "0")


@functools.cache
def _set_up() -> None:
    """Have one client for all, which asks the bucket what there is and not its own memory."""
    import fsspec

    for scheme in _CLIENTS:
        # Orbax writes past that client, other processes too.
        fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
