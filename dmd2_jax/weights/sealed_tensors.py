"""Digests in the header of a .safetensors file: of each tensor's bytes, and of the header itself.

They are two texts of the format's own `__metadata__`, which other programs pass over. A file
without them, as those of others, is read as it is.
"""

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.seal import canonical, digest

__all__ = ["NOTES", "check_sealed", "sealed_header"]

_DIGESTS, _SEAL = "dmd2_digests", "dmd2_seal"
NOTES = (_DIGESTS, _SEAL)
"""The texts that hold the digests."""

_METADATA = "__metadata__"
_LISTED = 3


def sealed_header(file: bytes) -> tuple[bytes, memoryview]:
    """Put digests into what safetensors made.

    Its own order of the texts differs from process to process; here it is sorted, so that the same
    tensors are the same bytes.

    Args:
      file: all bytes of a .safetensors file.

    Returns:
      (length and header, the tensors' bytes): a file one after the other.
    """
    header, data = _parts(memoryview(file))
    notes = header.pop(_METADATA, {}) | {
        _DIGESTS: json.dumps({name: _of(entry, data) for name, entry in header.items()})
    }
    notes[_SEAL] = _header_digest(header, notes)
    text = json.dumps({_METADATA: dict(sorted(notes.items())), **header}, separators=(",", ":"))
    content = text.encode()
    content += b" " * (-len(content) % 8)  # as the format aligns the tensors
    return len(content).to_bytes(8, "little") + content, data


def check_sealed(path: str | os.PathLike) -> None:
    """Compare a .safetensors file, whose form has been checked, with the digests that it has.

    Raises:
      Refused: naming the tensors that are not as they were written.
      OSError: if it cannot be read.
    """
    with Path(path).open("rb") as file:
        header, data = _parts(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    notes = header.pop(_METADATA, {})
    if not set(NOTES) & notes.keys():
        return
    seal = notes.pop(_SEAL, None)
    if seal != _header_digest(header, notes):
        raise _refused(path, "its header is not as it was written")
    try:
        digests = dict(json.loads(notes[_DIGESTS]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _refused(path, "its digests are none") from error
    altered = [name for name, entry in header.items() if digests.get(name) != _of(entry, data)]
    if altered:
        more = f" and {len(altered) - _LISTED} more" if len(altered) > _LISTED else ""
        raise _refused(path, f"not as written: {', '.join(altered[:_LISTED])}{more}")


def _parts(file: memoryview) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(file[:8], "little")
    return json.loads(bytes(file[8 : 8 + length])), file[8 + length :]


def _of(entry: Mapping[str, Any], data: memoryview) -> str:
    begin, end = entry["data_offsets"]
    return digest(data[begin:end])


def _header_digest(header: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    return digest(canonical([header, notes]))


def _refused(path: str | os.PathLike, fault: str) -> Refused:
    return Refused(
        f"weights file {str(path)!r} does not match its own digests ({fault}), expected the bytes "
        f"that were written; copy it again. If a program changed it on purpose and kept its notes, "
        f"let it leave out {' and '.join(NOTES)}."
    )
