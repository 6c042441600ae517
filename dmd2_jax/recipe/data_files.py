"""The list of a run's data files, so that a run that goes on can say which are others."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from dmd2_jax.data.reading.classes import Listing
from dmd2_jax.data.reading.files import Files
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.whole_file import whole_file

__all__ = ["FILES", "read_files", "write_files"]

FILES = "data_files.json.gz"
"""The file of a run folder that lists the files of its data."""

_MOST = 2**28
"""Bytes of the list before it is packed: some millions of files."""


def write_files(workdir: Path, files: Files | None) -> None:
    """Write the list into a run folder; nothing if it is not known, or too long."""
    if files is None:
        return
    text = json.dumps(files._asdict(), separators=(",", ":")).encode()
    if len(text) <= _MOST:
        with whole_file(workdir / FILES) as partial:
            partial.write_bytes(gzip.compress(text, 6, mtime=0))


def read_files(workdir: Path, listing: Listing) -> Files | None:
    """Return the list of a run folder.

    Args:
      workdir: the run folder.
      listing: what was recorded of the same data.

    Returns:
      None if there is none, or it is not the one that was recorded.
    """
    try:
        with path_of(workdir / FILES).open("rb") as file, gzip.open(file) as packed:
            text = packed.read(_MOST + 1)  # no more than that is ever inflated
        files = _from_json(json.loads(text)) if len(text) <= _MOST else None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return None
    return files if files is not None and files.by_size == listing.sizes else None


def _from_json(value: Any) -> Files | None:
    if not isinstance(value, dict):
        return None
    columns = [value.get(key) for key in Files._fields]
    if not all(isinstance(column, list) for column in columns):
        return None
    names, sizes, digests = (list(column or ()) for column in columns)
    if len(names) != len(sizes) or len(digests) not in (0, len(names)):
        return None
    return Files(tuple(map(str, names)), tuple(sizes), tuple(map(str, digests)))
