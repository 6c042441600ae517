"""Digests in the header of a .safetensors file: of each tensor's bytes, and of the header itself.

They are two texts of the format's own `__metadata__`, which other programs pass over. A file
without them, as those of others, is read as it is.
"""

import json
import mmap
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.seal import canonical, digest, digests

__all__ = ["NOTES", "check_sealed", "write_sealed"]

_DIGESTS, _SEAL = "dmd2_digests", "dmd2_seal"
NOTES = (_DIGESTS, _SEAL)
"""The texts that hold the digests."""

_METADATA = "__metadata__"
_LISTED = 3


def write_sealed(
    tensors: Mapping[str, np.ndarray], notes: Mapping[str, str], file: BinaryIO
) -> None:
    """Write a .safetensors file with digests, from where the tensors lie in memory.

    safetensors puts its whole file together in memory first. It is asked for one number of each
    tensor instead: that says the order, and how it calls the types. Its own order of the texts
    differs from process to process; here it is sorted, so that the same tensors are the same bytes.

    Args:
      tensors: in C order, as the format has them.
      notes: texts by name.
      file: new and open for writing.

    Raises:
      OSError: if the disk refuses.
    """
    from safetensors.numpy import save

    header, _ = _parts(memoryview(save({n: np.zeros(1, t.dtype) for n, t in tensors.items()})))
    end = 0
    for name, entry in header.items():
        begin, end = end, end + tensors[name].nbytes
        entry |= {"shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    data = [_bytes(tensors[name]) for name in header]
    # All digests are of one length, so the place of the tensors is known before: the disk writes
    # them while they are digested.
    blank = dict.fromkeys(header, digest(b""))
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: dict(zip(header, digests(data), strict=True)))
        file.seek(len(_with_digests(header, notes, blank)))
        for part in data:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        file.write(_with_digests(header, notes, found.result()))


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
        expected = dict(json.loads(notes[_DIGESTS]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _refused(path, "its digests are none") from error
    found = _found(header, data)
    altered = [name for name in header if expected.get(name) != found[name]]
    if altered:
        more = f" and {len(altered) - _LISTED} more" if len(altered) > _LISTED else ""
        raise _refused(path, f"not as written: {', '.join(altered[:_LISTED])}{more}")


def _parts(file: memoryview) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(file[:8], "little")
    return json.loads(bytes(file[8 : 8 + length])), file[8 + length :]


def _bytes(tensor: np.ndarray) -> memoryview:
    little = tensor.astype(tensor.dtype.newbyteorder("<"), order="C", copy=False)
    return little.reshape(-1).view(np.uint8).data


def _found(header: Mapping[str, Any], data: memoryview) -> dict[str, str]:
    """Return the digest of each tensor's bytes."""
    parts = (data[begin:end] for begin, end in (it["data_offsets"] for it in header.values()))
    return dict(zip(header, digests(parts), strict=True))


def _with_digests(
    header: Mapping[str, Any], notes: Mapping[str, str], found: Mapping[str, str]
) -> bytes:
    """Return what stands before the tensors: the header's length, and the header."""
    notes = {**notes, _DIGESTS: json.dumps(dict(found))}
    notes[_SEAL] = _header_digest(header, notes)
    text = json.dumps({_METADATA: dict(sorted(notes.items())), **header}, separators=(",", ":"))
    content = text.encode()
    content += b" " * (-len(content) % 8)  # as the format aligns the tensors
    return len(content).to_bytes(8, "little") + content


def _header_digest(header: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    return digest(canonical([header, notes]))


def _refused(path: str | os.PathLike, fault: str) -> Refused:
    return Refused(
        f"weights file {str(path)!r} does not match its own digests ({fault}), expected the bytes "
        f"that were written; copy it again. If a program changed it on purpose and kept its notes, "
        f"let it leave out {' and '.join(NOTES)}."
    )
