"""Read what torch.save and pickle.dump wrote, and write state dicts that torch.load reads.

Three containers hold the same kind of pickle (`stand_ins`):

    zip      torch.save since 1.6: NAME/data.pkl, and the numbers in NAME/data/0, NAME/data/1, ...
             torch.jit.save: the same, and a program in NAME/code, which is not read
    legacy   torch.save before: magic number, version, system, object, keys, then the numbers
    plain    pickle.dump: every storage is the bytes of a legacy file of its own (EDM's .pkl)

Source: the format as torch 2.13 writes it (torch/serialization.py documents no standard).
"""

import io
import math
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.whole_file import whole_file
from dmd2_jax.weights.stand_ins import (
    ALLOWED,
    STORAGE_TYPES,
    UNTYPED_STORAGE,
    Storage,
    program_classes,
)
from dmd2_jax.weights.unpickle import Global, PickleError, shown, unpickle

__all__ = ["read_torch", "write_torch"]

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_ALIGNMENT = 64  # of the numbers within a zip, as torch writes it
# What opening and zipfile raise of damaged files; RuntimeError: of encrypted entries.
_UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, struct.error, zipfile.BadZipFile)
_LOCAL_HEADER = 30  # bytes of a zip entry's header, without its name
_STORAGES = STORAGE_TYPES | {UNTYPED_STORAGE: np.dtype(np.uint8)}
_KEY = re.compile(r"[0-9A-Za-z_]{1,64}")


def read_torch(path: str | os.PathLike) -> Any:
    """Read a file of torch.save or pickle.dump; nothing in it is executed.

    Args:
      path: the file; which of the containers it is, its first bytes say.

    Returns:
      Its object: Python data, NumPy arrays for tensors, `stand_ins.Record` for other objects.

    Raises:
      PickleError: if the file is missing, damaged, hostile, or no such file.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_zip(file)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
                return _read_pickles(stream, _TABLE)  # type: ignore[arg-type]
    except PickleError as error:
        raise PickleError(
            f"weights file {str(path)!r} is refused: {error}; take a copy from a source you "
            "trust, or a .safetensors file."
        ) from None
    except _UNREADABLE as error:
        raise PickleError(
            f"weights file {str(path)!r} cannot be read ({shown(error)}), expected a complete file "
            "of torch.save or an EDM .pkl; check the path or copy the file again."
        ) from error


def write_torch(tensors: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Write a state dict as torch.save does, whole or not at all; the bytes depend on it alone.

    Args:
      tensors: by name, of the dtypes of `STORAGE_TYPES`.
      path: the file, replaced if it exists.

    Raises:
      ValueError: if a dtype is none of torch's.
      OSError: if the disk refuses.
    """
    names = {dtype: name for name, dtype in STORAGE_TYPES.items()}
    unknown = {name: t.dtype for name, t in tensors.items() if t.dtype not in names}
    if unknown:
        raise Refused(
            f"tensors of dtypes {unknown} cannot be written, expected {sorted(map(str, names))}; "
            "convert them to float32."
        )
    with whole_file(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        _add(archive, "data.pkl", _state_dict_pickle(tensors, names))
        _add(archive, "byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            _add(archive, f"data/{key}", tensor.tobytes())
        _add(archive, "version", b"3\n")


# Reading -------------------------------------------------------------------------------------


def _read_zip(file: BinaryIO) -> Any:
    """Read a zip: entries by exact name into memory, never extracted, never decompressed."""
    with zipfile.ZipFile(file) as archive:
        entries = _checked_entries(archive, os.fstat(file.fileno()).st_size)
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleError(
                f"got a zip with {len(pickles)} NAME/data.pkl, expected the one of torch.save"
            )
        folder = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in entries else b"little"
        if order != b"little":
            raise PickleError(f"got numbers in byte order {shown(order)}, expected little")
        storages: dict[str, Storage] = {}

        def load(dtype: np.dtype, key: str, count: int) -> Storage:
            name = f"{folder}data/{key}"
            if name not in entries or entries[name].file_size != count * dtype.itemsize:
                raise PickleError(
                    f"got no {shown(name)!r} of {count} numbers of {dtype}, expected it in the zip"
                )
            raw = archive.read(entries[name])
            return Storage(np.frombuffer(raw, dtype))

        pickled = archive.read(pickles[0])
        allowed = ALLOWED | program_classes(pickled)
        return unpickle(io.BytesIO(pickled), allowed, _storages(storages, load))


def _checked_entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the entries that may be read, having refused what torch.save never writes."""
    entries: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        name = info.filename
        if name in entries or name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise PickleError(f"got the zip entry {shown(name)!r}, expected NAME/data/NUMBER once")
        if name.split("/")[1:2] == ["code"]:
            continue  # of a TorchScript program, compressed
        total += info.file_size
        if info.compress_type != zipfile.ZIP_STORED or total > size:
            raise PickleError(
                f"got the zip entry {shown(name)!r} of {info.file_size:,} bytes in a file of "
                f"{size:,}, expected uncompressed entries: it may be a zip bomb"
            )
        entries[name] = info
    return entries


def _read_pickles(stream: BinaryIO, allowed: Mapping[str, Global]) -> Any:
    """Read a legacy file or a plain pickle; only the former begins with the magic number."""
    first = unpickle(stream, allowed)
    if type(first) is not int or first != _MAGIC:
        return first
    version = unpickle(stream, {})
    system = unpickle(stream, {})
    if version != _VERSION or type(system) is not dict or system.get("little_endian") is not True:
        raise PickleError(
            f"got version {shown(version)} of the format on {shown(system)}, expected {_VERSION} "
            "on a little-endian machine"
        )
    storages: dict[str, Storage] = {}
    begin = stream.tell()
    stream.seek(0, io.SEEK_END)
    left = stream.tell() - begin
    stream.seek(begin)

    def reserve(dtype: np.dtype, _: str, count: int) -> Storage:
        nonlocal left
        left -= count * dtype.itemsize
        if left < 0:
            raise PickleError(f"got a storage of {count:,} numbers, expected no more than follow")
        return Storage(np.empty(count, dtype))

    value = unpickle(stream, allowed, _storages(storages, reserve))
    keys = unpickle(stream, {})
    texts = type(keys) is list and all(type(key) is str for key in keys)
    if not texts or sorted(keys) != sorted(storages):
        raise PickleError("got other storages than the object uses, expected the same ones")
    for key in keys:
        _fill(storages[key].array, stream)
    return value


def _fill(array: np.ndarray, stream: BinaryIO) -> None:
    """Read the numbers of one storage of a legacy file: their count, then themselves."""
    header, raw = stream.read(8), stream.read(array.nbytes)
    if len(header) != 8 or len(raw) != array.nbytes or struct.unpack("<q", header) != (array.size,):
        raise PickleError(f"got a truncated storage, expected {array.size:,} numbers")
    array[:] = np.frombuffer(raw, array.dtype)


def _storages(
    storages: dict[str, Storage], load: Callable[[np.dtype, str, int], Storage]
) -> Callable[[Any], Storage | Global]:
    """Return what turns ("storage", type, key, device, count[, view]) into a Storage.

    Legacy files also have ("module", class, its file, its source code) for a module's class.
    """

    def persistent(identity: Any) -> Storage | Global:
        if type(identity) is tuple and len(identity) == 4 and identity[0] == "module":
            if not isinstance(identity[1], Global):
                raise PickleError("got a module's class of unknown kind, expected a name")
            return identity[1]
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise PickleError("got a persistent id of unknown kind, expected a storage")
        _, kind, key, _, count, *view = identity
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) else None
        if dtype is None or view not in ([], [None]):
            raise PickleError("got a storage of unknown kind, expected one of numbers of its own")
        if type(key) is not str or not _KEY.fullmatch(key) or type(count) is not int or count < 0:
            raise PickleError(f"got the storage {shown(key)!r}, expected a key and a count")
        if key not in storages:
            storages[key] = load(dtype, key, count)
        if storages[key].array.dtype != dtype or storages[key].array.size != count:
            raise PickleError(f"got storage {key!r} twice with other numbers, expected the same")
        return storages[key]

    return persistent


def _load_from_bytes(raw: Any) -> Storage:
    """Read a storage that is a legacy file of its own; one within another is refused."""
    if type(raw) is not bytes:
        raise PickleError(f"got a storage of a {type(raw).__name__}, expected bytes")
    storage = _read_pickles(io.BytesIO(raw), ALLOWED)
    if not isinstance(storage, Storage):
        raise PickleError(f"got a {type(storage).__name__} within a storage, expected numbers")
    return storage


_LOAD = Global("torch.storage._load_from_bytes", _load_from_bytes)
_TABLE = {**ALLOWED, _LOAD.name: _LOAD}

# Writing -------------------------------------------------------------------------------------


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")  # dated 1980: equal weights, equal bytes
    assert archive.fp is not None  # it is open
    begin = archive.fp.tell() + _LOCAL_HEADER + len(info.filename) + 4
    padding = -begin % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(info, content)


def _state_dict_pickle(tensors: Mapping[str, np.ndarray], names: Mapping[np.dtype, str]) -> bytes:
    """Return the pickle (protocol 2) of an OrderedDict of tensors."""
    pairs = []
    for key, (name, tensor) in enumerate(tensors.items()):
        shape = tensor.shape
        strides = [math.prod(shape[axis + 1 :]) for axis in range(tensor.ndim)]
        kind, size = _global(names[tensor.dtype]), _integer(tensor.size)
        identity = _tuple(_text("storage"), kind, _text(str(key)), _text("cpu"), size)
        arguments = _tuple(
            identity + b"Q",
            _integer(0),  # the offset
            _tuple(*map(_integer, shape)),
            _tuple(*map(_integer, strides)),
            b"\x89",  # requires_grad=False
            _empty_ordered_dict(),
        )
        pairs.append(_text(name) + _global("torch._utils._rebuild_tensor_v2") + arguments + b"R")
    return b"\x80\x02" + _empty_ordered_dict() + b"(" + b"".join(pairs) + b"u."


def _empty_ordered_dict() -> bytes:
    return _global("collections.OrderedDict") + b")R"


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(9, "little")
    return b"\x8a" + bytes([len(raw)]) + raw
