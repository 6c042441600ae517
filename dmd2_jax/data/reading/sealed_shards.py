"""Records of arrays and a text in shards of array_record, written one whole at a time and sealed.

    FOLDER/plan.json                              while it is written: what is to be written
    FOLDER/shard-00003-of-00012.array_record      whole, or not there under this name
    FOLDER/shard-00003-of-00012.json              beside it until all are there: its digest
    FOLDER/manifest.json                          in the end: layout, plan and every digest, sealed

A process that is killed loses the shard that it was writing; the same plan goes on after the last
whole one. Another plan is refused.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.data.reading.records import open_writer
from dmd2_jax.run.folder import write_json
from dmd2_jax.runtime.integrity import sealed
from dmd2_jax.runtime.owner import holds_nothing
from dmd2_jax.runtime.places import make_folder, path_of
from dmd2_jax.runtime.seal import check_reached, file_digest
from dmd2_jax.runtime.whole_file import whole_file

__all__ = [
    "MANIFEST",
    "Entry",
    "Layout",
    "Manifest",
    "ShardFolder",
    "claim",
    "read_manifest",
    "verify",
]

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PLAN = "plan.json"
FORMAT = 1
DTYPES = ("float16", "float32")
_MAX_TEXT = 2**20


class Layout(NamedTuple):
    """What a record holds: arrays, one after the other by name, and then a text in UTF-8.

    Attributes:
      arrays: name -> (shape, "float16" or "float32").
    """

    arrays: Mapping[str, tuple[tuple[int, ...], str]]

    @property
    def size(self) -> int:
        """Bytes of a record without its text."""
        return sum(math.prod(shape) * _dtype(name).itemsize for shape, name in self.arrays.values())

    def pack(self, arrays: Mapping[str, np.ndarray], text: str) -> bytes:
        """Return the record of one example.

        Raises:
          ValueError: if an array has another shape, or values that its type cannot hold.
        """
        parts = []
        for name, (shape, dtype) in sorted(self.arrays.items()):
            array = np.asarray(arrays[name])
            with np.errstate(over="ignore"):  # reported below
                stored = array.astype(_dtype(dtype))
            if stored.shape != shape or not np.isfinite(stored).all():
                raise Refused(
                    f"{name} of shape {array.shape} reaches {np.abs(array).max():.3g}, expected "
                    f"shape {shape} and finite values of {dtype}; store float32."
                )
            parts.append(stored.tobytes())
        return b"".join(parts) + text.encode()

    def unpack(self, records: Sequence[bytes]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return (name -> [n, ...] float32, the texts) of n records.

        Raises:
          ValueError: if a record is too short or too long.
        """
        size = self.size
        for record in records:
            if not size <= len(record) <= size + _MAX_TEXT:
                raise Refused(f"a record has {len(record)} bytes, expected {size} and a text")
        arrays, start = {}, 0
        for name, (shape, dtype) in sorted(self.arrays.items()):
            count = math.prod(shape)
            out = np.empty((len(records), count), np.float32)
            for row, record in zip(out, records, strict=True):
                row[:] = np.frombuffer(record, _dtype(dtype), count, start)
            arrays[name] = out.reshape(len(records), *shape)
            start += count * _dtype(dtype).itemsize
        return arrays, [record[size:].decode(errors="replace") for record in records]


class Entry(NamedTuple):
    """A whole shard.

    Attributes:
      file: its name.
      records: their number.
      bytes: its size.
      digest: BLAKE2b of the file.
      left_out: the names of examples that should be there and could not be read.
    """

    file: str
    records: int
    bytes: int
    digest: str
    left_out: tuple[str, ...] = ()


class Manifest(NamedTuple):
    """What manifest.json says, sound.

    Attributes:
      layout: of the records.
      shards: in order.
      files: name -> digest of what else belongs to the folder.
      plan: what was asked for.
      info: what the reader wants to know.
    """

    layout: Layout
    shards: tuple[Entry, ...]
    files: Mapping[str, str]
    plan: Mapping[str, Any]
    info: Mapping[str, Any]


@dataclass(frozen=True)
class ShardFolder:
    """A folder that belongs to one plan.

    Attributes:
      folder: where.
      plan: what is written there.
      count: of shards.
      finished: number -> whole shard.
      complete: whether the manifest is there.
    """

    folder: Path
    plan: Mapping[str, Any]
    count: int
    finished: dict[int, Entry]
    complete: bool

    def write(self, number: int, records: Iterable[bytes], left_out: Sequence[str] = ()) -> Entry:
        """Write shard `number`, whole or not at all.

        Raises:
          MissingPackageError: if the package array_record is not installed.
          OSError: if the disk refuses.
        """
        target = self.folder / _file(number, self.count)
        make_folder(self.folder)
        if not (self.folder / PLAN).exists():
            write_json(self.folder / PLAN, sealed({}, {"format": FORMAT, "plan": self.plan}))
        with whole_file(target) as partial:
            written = 0
            try:
                writer = open_writer(partial)
                for record in records:
                    writer.write(record)
                    written += 1
                writer.close()
            except RuntimeError as error:  # the writer's word for everything
                raise OSError(f"{target} cannot be written ({error}); is the disk full?") from error
            entry = Entry(
                target.name, written, partial.stat().st_size, file_digest(partial), tuple(left_out)
            )
        write_json(target.with_suffix(".json"), entry._asdict())
        self.finished[number] = entry
        return entry

    def finish(self, layout: Layout, files: Iterable[str], info: Mapping[str, Any]) -> None:
        """Seal the folder: write the manifest, then remove what it replaces.

        Args:
          layout: of the records.
          files: what else lies in the folder and belongs to it.
          info: for the reader; anything JSON can hold.
        """
        arrays = {
            name: {"shape": list(shape), "dtype": dtype}
            for name, (shape, dtype) in layout.arrays.items()
        }
        extra = {
            "format": FORMAT,
            "shards": [self.finished[number]._asdict() for number in range(self.count)],
            "files": {name: file_digest(self.folder / name) for name in files},
            "plan": dict(self.plan),
            "info": dict(info),
        }
        write_json(self.folder / MANIFEST, sealed(arrays, extra))
        self.clear()

    def clear(self) -> None:
        """Remove what only the writing needed."""
        for number in range(self.count):
            (self.folder / _file(number, self.count)).with_suffix(".json").unlink(missing_ok=True)
        (self.folder / PLAN).unlink(missing_ok=True)


def claim(folder: str | Path, plan: Mapping[str, Any], count: int) -> ShardFolder:
    """Look at a folder that shards are to be written to; nothing is written yet.

    Args:
      folder: need not exist.
      plan: everything that decides what is written; JSON.
      count: of shards.

    Returns:
      The folder, with the shards that are whole and undamaged.

    Raises:
      ValueError: if it holds something else, or the shards of another plan; the message says what
        differs.
    """
    folder = path_of(folder)
    plan = json.loads(json.dumps(plan))  # as it is read back
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        _check_same(folder, manifest.plan, plan)
        verify(folder, manifest)
        return ShardFolder(folder, plan, count, dict(enumerate(manifest.shards)), True)
    finished: dict[int, Entry] = {}
    if (folder / PLAN).is_file():
        _check_same(folder, _read_sealed(folder / PLAN)["plan"], plan)
        for number in range(count):
            entry = _sound_entry(folder / _file(number, count))
            if entry is not None:
                finished[number] = entry
    elif not holds_nothing(folder):
        raise Refused(
            f"{folder} exists, holds no {PLAN} or {MANIFEST} and is not empty, expected a new "
            "folder or one that this command began; nothing is written over: choose another."
        )
    return ShardFolder(folder, plan, count, finished, False)


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check a folder's manifest, not yet its shards.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged or of another format.
    """
    file = path_of(folder).expanduser() / MANIFEST
    if not file.is_file():
        unfinished = file.with_name(PLAN).is_file()
        remedy = "let `dmd2 cache` finish it" if unfinished else "write one by `dmd2 cache`"
        raise Missing(
            f"{folder} has no {MANIFEST}, expected a finished cache of latents or embeddings; "
            f"{remedy}, or choose another config.data.path."
        )
    extra = _read_sealed(file)
    try:
        layout = Layout(
            {
                name: (tuple(entry["shape"]), entry["dtype"])
                for name, entry in extra["arrays"].items()
            }
        )
        shards = tuple(
            Entry(**{**entry, "left_out": tuple(entry["left_out"])}) for entry in extra["shards"]
        )
        manifest = Manifest(layout, shards, extra["files"], extra["plan"], extra["info"])
        good = all(_plain(entry.file) and _within(entry.records, 0) for entry in shards)
        good &= all(map(_plain, manifest.files))
        good &= all(dtype in DTYPES for _, dtype in layout.arrays.values())
        good &= all(_within(side, 1) for shape, _ in layout.arrays.values() for side in shape)
        good &= 0 < layout.size < 2**32
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _refused(file, f"{type(error).__name__}: {error}") from error
    if not good:
        raise _refused(file, "a value is not what it should be")
    return manifest


def verify(folder: str | Path, manifest: Manifest, workers: int = 0) -> None:
    """Compare every file with its digest, in several threads.

    Args:
      folder: of the manifest.
      manifest: from `read_manifest`.
      workers: threads; 0: one for each processor.

    Raises:
      ValueError: naming the files that are missing or damaged.
      OSError: if one cannot be read at the moment.
    """
    folder = path_of(folder).expanduser()
    expected = {entry.file: entry.digest for entry in manifest.shards} | dict(manifest.files)

    def fault(name: str) -> str:
        try:
            found = file_digest(folder / name)
        except OSError as error:
            check_reached(error, folder / name)
            return f"{name} ({error.strerror})"
        return "" if found == expected[name] else f"{name} (another digest)"

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        faults = [text for text in pool.map(fault, expected) if text]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise Refused(
            f"{folder}: {len(faults)} of {len(expected)} files are missing or damaged: "
            f"{', '.join(faults[:5])}{more}; expected what {MANIFEST} seals: copy them again, or "
            f"remove {MANIFEST} and these files and write the cache again."
        )


def _dtype(name: str) -> np.dtype:
    return np.dtype(name).newbyteorder("<")


def _file(number: int, count: int) -> str:
    return f"shard-{number:05d}-of-{count:05d}.array_record"


def _plain(name: Any) -> bool:
    """Return whether a name is of a file in the same folder: it must lead nowhere else."""
    return isinstance(name, str) and name == Path(name).name and name not in ("", "..")


def _within(number: Any, low: int) -> bool:
    return type(number) is int and low <= number < 2**40


def _sound_entry(target: Path) -> Entry | None:
    """Return what the note beside a shard says, if the shard is what it says."""
    try:
        content = read_json(target.with_suffix(".json"))
        entry = Entry(**{**content, "left_out": tuple(content["left_out"])})
        if entry.file == target.name and file_digest(target) == entry.digest:
            return entry
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        check_reached(error, target)
    _log.warning("%s is damaged and will be written again.", target)
    return None


def _read_sealed(file: Path) -> dict[str, Any]:
    """Read what `sealed` made: the extra content, and the arrays under that name."""
    try:
        content = read_json(file)
        extra, arrays = content["extra"], content["arrays"]
        good = sealed(arrays, extra) == content and extra["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        check_reached(error, file)
        raise _refused(file, f"{type(error).__name__}: {error!s:.100}") from error
    if not good:
        raise _refused(file, "it does not match its own digest, or is of another format")
    return {**extra, "arrays": arrays}


def _refused(file: Path, fault: str) -> Refused:
    return Refused(
        f"{file} is refused ({fault}), expected what `dmd2 cache` writes, format {FORMAT}; copy it "
        "again, or write the cache again into a new folder."
    )


def _check_same(folder: Path, there: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Refuse a plan that is not the one that the folder was begun with.

    A key that the folder lacks was not there yet in the release that began it.
    """
    keys = sorted(key for key, value in there.items() if plan.get(key) != value)
    if keys:
        differences = ", ".join(f"{key} {there.get(key)!r}, now {plan.get(key)!r}" for key in keys)
        raise Refused(
            f"{folder} holds what was made of other things: {differences}; expected the same ones: "
            "give them again, or choose another folder."
        )
