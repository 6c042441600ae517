"""Records at any position of sharded array_record and TFRecord files, without TensorFlow."""

import collections
import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dmd2_jax.config.refused import Refused, lacks
from dmd2_jax.data.reading.contract import MissingPackageError
from dmd2_jax.data.reading.decode import CorruptImageError
from dmd2_jax.typing import Int

_MAX_RECORD = 2**30
_BLOCK = 256  # records that are in memory at a time while their classes are read
_FRAME = 12  # of a TFRecord: 8 bytes of length and 4 of its checksum; 4 more follow the data


class Shard(NamedTuple):
    """A part of a file.

    Attributes:
      path: the file.
      skip: records before the part.
      take: records of the part.
      total: records of the file.
    """

    path: str
    skip: int
    take: int
    total: int


class Records(Protocol):
    """Records by number, from any thread."""

    def __len__(self) -> int: ...

    def read(self, indices: Int[np.ndarray, " n"]) -> list[bytes]:
        """Return these records; raises CorruptImageError if one of them is damaged."""

    def describe(self, index: int) -> str:
        """Return file and position of a record, for messages."""


class _Shards:
    """Where each record lies."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = list(shards)
        self._ends = np.cumsum([shard.take for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def describe(self, index: int) -> str:
        """Return file and position of a record, for messages."""
        shards, positions = self._locate(np.array([index]))
        return f"{self._shards[int(shards[0])].path} record {int(positions[0])}"

    def _locate(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Return (number of the shard, position in its file) of each record."""
        shards = np.searchsorted(self._ends, indices, side="right")
        takes = np.array([shard.take for shard in self._shards])
        skips = np.array([shard.skip for shard in self._shards])
        return shards, indices - (self._ends - takes)[shards] + skips[shards]


class ArrayRecords(_Shards):
    """Records of array_record files."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Open every file once, to see that it is whole.

        Raises:
          MissingPackageError: if the package array_record is not installed.
          ValueError: if a file is damaged or has another number of records than it should.
        """
        super().__init__(shards)
        self._open: collections.OrderedDict[int, object] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._most_open = _file_limit() // 2
        for number, shard in enumerate(self._shards):
            if not os.path.isfile(shard.path):  # where its reader finds 0 records
                raise _refused(shard, "is missing")
            try:
                found = self._reader(number).num_records()
            except (RuntimeError, OSError) as error:
                raise _refused(shard, f"cannot be opened ({error})") from error
            if found != shard.total:
                raise _refused(shard, f"has {found} records")

    def read(self, indices: Int[np.ndarray, " n"]) -> list[bytes]:
        """Return these records; see `Records`."""
        shards, positions = self._locate(indices)
        out: list[bytes] = [b""] * len(positions)
        for number in np.unique(shards):
            here = np.flatnonzero(shards == number)
            try:
                records = self._reader(int(number)).read(positions[here].tolist())
            except (RuntimeError, OSError) as error:
                raise CorruptImageError(f"damaged record: {error}") from error
            for k, record in zip(here, records, strict=True):
                out[k] = record
        return out

    def _reader(self, number: int):
        """Return the reader of a shard, closing the one used longest ago if there are many."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            reader = _open_array_record(self._shards[number].path)
            self._open[number] = reader
            if len(self._open) > self._most_open:
                self._open.popitem(last=False)
            return reader


class TFRecords(_Shards):
    """Records of TFRecord files.

    The format has no index, so opening reads through every file once (a minute for ImageNet-64 on
    a slow disk). Its checksums are not verified: a damaged image is found when it is decoded, a
    damaged label is not.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Find where the records of every file begin.

        Raises:
          ValueError: if a file is damaged or has another number of records than it should.
        """
        super().__init__(shards)
        self._starts = [_record_starts(shard) for shard in self._shards]

    def read(self, indices: Int[np.ndarray, " n"]) -> list[bytes]:
        """Return these records; see `Records`."""
        shards, positions = self._locate(indices)
        out = []
        for number, position in zip(shards, positions, strict=True):
            start, end = self._starts[number][position : position + 2]
            with open(self._shards[number].path, "rb") as file:
                file.seek(int(start) + _FRAME)
                out.append(file.read(int(end - start) - _FRAME - 4))
        return out


def labels_of(
    records: Records, indices: Int[np.ndarray, " n"], label: Callable[[bytes], int]
) -> Int[np.ndarray, " n"]:
    """Return the class of each of these records, -1 of one that is damaged.

    Args:
      records: the whole.
      indices: which of them.
      label: the class of one; may raise CorruptImageError.
    """
    found = np.full(len(indices), -1, np.int32)
    for begin in range(0, len(indices), _BLOCK):
        block = indices[begin : begin + _BLOCK]
        try:
            found[begin : begin + len(block)] = [label(record) for record in records.read(block)]
        except CorruptImageError:  # one by one, to find which
            for i, index in enumerate(block, begin):
                with contextlib.suppress(CorruptImageError):
                    found[i] = label(records.read(np.array([index]))[0])
    return found


def open_writer(path: Path) -> Any:
    """Return array_record's writer of a file that is read in any order.

    Raises:
      MissingPackageError: if the package array_record is not installed.
    """
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise MissingPackageError(lacks("writing array_record", "array_record", "tfds")) from error
    # One record a group, for reading in any order; pixels hardly shrink and PNGs not at all.
    return array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")


def _record_starts(shard: Shard) -> Int[np.ndarray, " n_plus_1"]:
    """Return where each record of a TFRecord file begins, and where the last one ends."""
    size = os.path.getsize(shard.path)
    starts = [0]
    with open(shard.path, "rb") as file:
        if size:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            while starts[-1] < size:
                length = int.from_bytes(content[starts[-1] : starts[-1] + 8], "little")
                starts.append(starts[-1] + _FRAME + length + 4)
                if length > _MAX_RECORD or starts[-1] > size:
                    raise _refused(shard, f"is damaged after record {len(starts) - 2}")
    if len(starts) - 1 != shard.total:
        raise _refused(shard, f"has {len(starts) - 1} records")
    return np.array(starts, np.int64)


def _open_array_record(path: str):
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise MissingPackageError(lacks("reading array_record", "array_record", "tfds")) from error
    # Reading ahead is for going through a file in order.
    return array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")


def _file_limit() -> int:
    """Return how many files a process may have open."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 512
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 8192 if soft == resource.RLIM_INFINITY else max(16, min(soft, 8192))


def _refused(shard: Shard, got: str) -> Refused:
    return Refused(
        f"{Path(shard.path)} {got}, expected {shard.total} records; the file is incomplete or "
        "damaged: copy or prepare it again."
    )
