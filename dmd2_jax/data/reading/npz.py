"""The arrays of a .npz that may come from anywhere: no code is run, and no size believed."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.dataset import MEMORY_LIMIT

__all__ = ["DAMAGE", "npz_names", "open_npz", "read_npz", "refused"]

_SMALL = 2**26  # bytes; constant labels of this size may be deflated by any ratio
_MAX_RATIO = 200
_LOCAL = struct.Struct("<4s22xHH")  # of a member's own header: signature, ..., two lengths
_PIECE = 2**22

DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    MemoryError,
    SyntaxError,  # this and the next of a header, which is a Python literal
    tokenize.TokenError,
    struct.error,
    zlib.error,
)
"""All that NumPy raises for a damaged .npy."""

_DAMAGED_ZIP = (*DAMAGE, zipfile.BadZipFile, NotImplementedError, RuntimeError)


def npz_names(file: Path) -> set[str]:
    """Return the names of the arrays of a .npz; none of what is no .npz."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except _DAMAGED_ZIP:
        return set()


def read_npz(file: Path, limit: int = MEMORY_LIMIT) -> dict[str, np.ndarray]:
    """Read every array of a .npz, running no code that it holds.

    Args:
      file: the file.
      limit: bytes that all arrays together may take.

    Returns:
      name -> array.

    Raises:
      ValueError: if it is damaged, holds Python objects (which would be unpickled), or an array
        is not the size that its header and the zip's directory agree on, or inflates like a bomb.
    """
    remedy = "save it as images.npy and labels.npy, which stay on disk"
    return _arrays(file, lambda name: True, limit, remedy, mapped=False)


def open_npz(
    file: Path, names: Collection[str], limit: int = MEMORY_LIMIT
) -> dict[str, np.ndarray]:
    """Open some arrays of a .npz; those that numpy.savez wrote stay on disk.

    Args:
      file: the file.
      names: of the arrays; others are not looked at.
      limit: bytes that arrays which are deflated (numpy.savez_compressed) may take in memory.

    Returns:
      name -> array, of the names that there are.

    Raises:
      ValueError: see `read_npz`.
    """
    remedy = "save it with numpy.savez, whose arrays stay on disk"
    return _arrays(file, names.__contains__, limit, remedy, mapped=True)


def _arrays(
    file: Path, wanted: Callable[[str], bool], limit: int, remedy: str, *, mapped: bool
) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if wanted(info.filename.removesuffix(".npy"))
            }
            kept = [info for info in members.values() if mapped and _is_stored(info)]
            size = sum(info.file_size for info in members.values() if info not in kept)
            if size > limit:
                raise Refused(
                    f"{size / 2**30:,.1f} GiB inflated, more than {limit / 2**30:,.1f}: {remedy}"
                )
            for name, info in members.items():
                _check_ratio(info)
                with archive.open(info) as stream:
                    form = _check_header(stream, info)
                if info in kept:
                    arrays[name] = _map(file, archive, info, *form)
                    continue
                with archive.open(info) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except _DAMAGED_ZIP as error:
        raise refused(str(file), error) from error
    return arrays


def _is_stored(info: zipfile.ZipInfo) -> bool:
    plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1
    return plain and info.compress_size == info.file_size


def _check_ratio(info: zipfile.ZipInfo) -> None:
    packed = max(1, info.compress_size)
    if info.file_size > _SMALL and info.file_size > _MAX_RATIO * packed:
        raise Refused(
            f"{info.filename!r} inflates from {packed:,} to {info.file_size:,} bytes: it may be a "
            "zip bomb"
        )


def _check_header(stream, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Refuse an array of objects, or of another size than the directory says, before reading.

    Returns:
      (shape, whether columns come first, type, bytes of the header).
    """
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise Refused(f"{info.filename!r} has .npy version {version}, not 1.0 or 2.0")
    shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise Refused(f"{info.filename!r} holds Python objects, which could run code")
    expected = int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize
    if info.file_size != expected + stream.tell():
        raise Refused(
            f"{info.filename!r} has {info.file_size:,} bytes, not the {expected:,} that its shape "
            f"{shape} of {dtype} takes"
        )
    return shape, fortran, dtype, stream.tell()


def _map(
    file: Path,
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    shape: tuple[int, ...],
    fortran: bool,
    dtype: np.dtype,
    header: int,
) -> np.ndarray:
    """Map an array that lies in the zip as it is, once its checksum is seen to be right."""
    with archive.open(info) as stream:  # which compares the checksum at the end
        while stream.read(_PIECE):
            pass
    with open(file, "rb") as opened:
        opened.seek(info.header_offset)
        _, name, extra = _LOCAL.unpack(opened.read(_LOCAL.size))
    offset = info.header_offset + _LOCAL.size + name + extra + header
    order: Literal["C", "F"] = "F" if fortran else "C"
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", offset, shape, order)


def refused(file: str, error: BaseException) -> Refused:
    """Return the refusal of a file of arrays."""
    return Refused(
        f"{file} is refused ({type(error).__name__}: {error}), expected plain arrays of numbers; "
        "save them again with numpy.save or numpy.savez."
    )
