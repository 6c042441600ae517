"""The files of a zip, by name, read in place: nothing is ever unpacked to disk.

A zip may come from anywhere. Names never become paths, sizes are checked against what is
plausible before a byte is inflated and against what was declared afterwards, and only the two
common ways of storing are read.
"""

import bisect
import os
import struct
import weakref
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.decode import CorruptImageError
from dmd2_jax.data.reading.folder import TooLargeError, Wanted, ending, hidden

MAX_RATIO = 200
"""Of inflated to deflated bytes; ordinary files stay below 100, bombs come near 1000."""

# All that zipfile raises for what is no zip, or a damaged one.
_DAMAGE = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error)
_SMALL = 2**20  # what a lying ratio cannot do harm with
_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, ..., lengths of name and extra field


class ZipRefusedError(Refused):
    """A zip that is damaged, hostile or of a kind that is not read."""


class ZipFolder:
    """A `FileTree` in a zip; `read` may be called from several threads."""

    def __init__(self, path: str | Path, wanted: Wanted, limit: int) -> None:
        """Read the directory of the zip.

        Args:
          path: the file.
          wanted: which members to list; no others are ever read.
          limit: bytes that such a member may have; a zip with a larger one is refused.

        Raises:
          ZipRefusedError: if it is no zip, or a member's name, size or kind is refused.
          FileNotFoundError: if there is no such file.
        """
        self.place = str(path)
        self.others: Counter[str] = Counter()
        self.links: list[str] = []
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        members = sorted(self._members(wanted, limit), key=lambda info: info.filename)
        self.names = [info.filename for info in members]
        for name, following in zip(self.names, self.names[1:], strict=False):
            if name == following:
                raise self._refused(f"has two members {name!r}", "expected different names")
        # Arrays, because a million ZipInfo take a gigabyte.
        self._offsets = np.array([info.header_offset for info in members], np.int64)
        self._deflated = np.array([info.compress_type != 0 for info in members], bool)
        self._packed = np.array([info.compress_size for info in members], np.int64)
        self._sizes = np.array([info.file_size for info in members], np.int64)
        self._sums = np.array([info.CRC for info in members], np.uint32)

    def read(self, name: str, limit: int) -> bytes:
        """Return a member's bytes; see `FileTree`.

        Raises:
          CorruptImageError: if the member is damaged, or inflates to another size than declared.
        """
        i = bisect.bisect_left(self.names, name)
        size, packed = int(self._sizes[i]), int(self._packed[i])
        if size > limit:
            raise TooLargeError(
                f"{self.place} has {size:,} bytes in {name!r}, expected at most {limit:,} for such "
                "a file."
            )
        # pread has no position, so that threads need no lock.
        data = os.pread(self._file, packed, self._start(name, int(self._offsets[i])))
        if self._deflated[i]:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise CorruptImageError(f"damaged zip member: {error}") from error
        if len(data) != size or zlib.crc32(data) != self._sums[i]:
            raise CorruptImageError("damaged zip member: not the size and checksum it should have")
        return data

    def size(self, name: str) -> int:
        """Return how many bytes a member has, as the directory says; see `FileTree`."""
        return int(self._sizes[bisect.bisect_left(self.names, name)])

    def _start(self, name: str, offset: int) -> int:
        """Return where a member's bytes begin: behind its own header, which repeats its name."""
        header = os.pread(self._file, _HEADER.size + 4 * len(name), offset)
        if len(header) < _HEADER.size or not header.startswith(b"PK\3\4"):
            raise CorruptImageError("damaged zip member: no header where the directory says")
        _, name_length, extra_length = _HEADER.unpack_from(header)
        # The directory has no checksum; a name that it has wrong may put an image in another class.
        there = header[_HEADER.size : _HEADER.size + name_length]
        if there not in (name.encode(), name.encode("cp437", errors="replace")):
            raise CorruptImageError(f"damaged zip: the directory has {name!r}, the file {there!r}")
        return offset + _HEADER.size + name_length + extra_length

    def _members(self, wanted: Wanted, limit: int) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self.place) as archive:
                members = archive.infolist()
        except _DAMAGE as error:
            raise self._refused(f"cannot be read ({error})", "expected a zip") from error
        self._check_count(len(members))
        chosen = []
        for info in members:
            self._check_name(info.orig_filename)
            if wanted(info.filename) and not hidden(info.filename):
                self._check(info, limit)
                chosen.append(info)
            elif not info.is_dir():
                if not hidden(info.filename):
                    self.others[ending(info.filename)] += 1
                try:  # It may be a damaged name that makes the member look unwanted.
                    self._start(info.filename, info.header_offset)
                except (CorruptImageError, OSError) as error:
                    raise self._refused(
                        str(error), "expected a sound zip; copy it again"
                    ) from error
        return chosen

    def _check_count(self, found: int) -> None:
        """Refuse a directory with another number of members than the end of the zip says."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, 2**16 + 100, max(0, size - 2**16 - 100))
        small, large = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
        (said,) = struct.unpack_from("<H", tail, small + 10)
        if said == 0xFFFF and large >= 0:  # too many for two bytes
            (said,) = struct.unpack_from("<Q", tail, large + 32)
        if said != found:
            raise self._refused(f"lists {found} members", f"expected {said}; copy it again")

    def _check_name(self, name: str) -> None:
        parts = name.split("/")
        if (
            ".." in parts
            or name.startswith("/")
            or any(c in name for c in "\\\0")
            or ":" in parts[0]
        ):
            raise self._refused(
                f"has a member {name!r}", "expected names that stay inside the zip; do not trust it"
            )

    def _check(self, info: zipfile.ZipInfo, limit: int) -> None:
        name = info.filename
        if info.flag_bits & 1:
            raise self._refused(f"has an encrypted member {name!r}", "expected a plain zip")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._refused(
                f"compresses {name!r} by method {info.compress_type}",
                "expected stored or deflated; pack it again",
            )
        # Deflating may add a little; more is a lie that would make us read, and allocate, at will.
        room = info.file_size + info.file_size // 100 + 1024
        if info.header_offset < 0 or info.compress_size > room:
            raise self._refused(
                f"packs {info.file_size:,} bytes of {name!r} into {info.compress_size:,} at byte "
                f"{info.header_offset}",
                "expected fewer, inside the file; it is damaged",
            )
        bomb = info.file_size > _SMALL and info.file_size > MAX_RATIO * max(1, info.compress_size)
        if info.file_size > limit or bomb:
            raise self._refused(
                f"inflates {name!r} from {info.compress_size:,} to {info.file_size:,} bytes",
                f"expected at most {limit:,}, and {MAX_RATIO} times; it may be a zip bomb",
            )

    def _refused(self, got: str, expected: str) -> ZipRefusedError:
        return ZipRefusedError(f"{self.place} {got}, {expected}.")
