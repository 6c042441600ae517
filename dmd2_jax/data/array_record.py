"""Shards of array_record that `dmd2 data --write=DIR` writes from any other source.

The folder holds info.json and {train,test}-00000-of-00002.array_record, .... A record is the
class, 4 bytes, least first, and then the image: its bytes [h, w, c] as they are ("raw", the
fastest to read) or a PNG ("png", the smallest). Splits and the names of the classes are those of
the source that was written. Needs the package array_record (the extra `[tfds]`), and
no TensorFlow.
"""

import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.sizes import Size, sides, size_of
from dmd2_jax.config.text import read_json
from dmd2_jax.data.reading.classes import listing_of_parts
from dmd2_jax.data.reading.contract import Batch, Options
from dmd2_jax.data.reading.dataset import check_split
from dmd2_jax.data.reading.decode import CorruptImageError, decode_image, encode_png
from dmd2_jax.data.reading.files import files_of_shards
from dmd2_jax.data.reading.records import ArrayRecords, Shard, labels_of, open_writer
from dmd2_jax.data.reading.source import DecodedSource
from dmd2_jax.runtime.distributed import say_once
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.typing import Int, Shaped

INFO = "info.json"
FORMAT = 1
LABEL_BYTES = 4
ENCODINGS = ("raw", "png")
SHARD_BYTES = 2**28
"""Pixels that a shard holds."""

_WHOLE_NUMBERS = ("format", "channels", "num_classes")


def load(
    path: str, split: str = "train", resolution: Size = 64, options: Options | None = None
) -> DecodedSource:
    """Open a folder that `dmd2 data --write` wrote.

    Args:
      path: the folder.
      split: "train", "test" or "all" (train, then test).
      resolution: unused; the images' own is checked by the caller.
      options: max_corrupt and workers count.

    Returns:
      The images, read when they are asked for.

    Raises:
      MissingPackageError: if the package array_record is not installed.
      FileNotFoundError: if there is no info.json in the folder.
      ValueError: if info.json or a shard is damaged.
    """
    info = _read_info(path)
    check_split(split, info["splits"], "array_record")
    folder = fetched(path).expanduser()
    shards = [
        Shard(str(folder / file), 0, count, count)
        for name, files in info["splits"].items()
        if split in (name, "all")
        for file, count in files
    ]
    images = _Images(ArrayRecords(shards), info)
    names = info["class_names"]
    if names is None and info["name"].startswith("tfds:"):
        _say_numbers(str(folder), info["name"])
    return DecodedSource(
        info["name"],
        len(images.records),
        images.read,
        describe=images.records.describe,
        resolution=info["resolution"],
        num_classes=info["num_classes"],
        options=options or Options(),
        channels=info["channels"],
        read_many=images.read_raw if info["encoding"] == "raw" else None,
        class_names=names,
        listing=lambda: listing_of_parts(
            [*((Path(shard.path).name, shard.total) for shard in shards), info["listings"], names]
        ),
        files=lambda: files_of_shards([s.path for s in shards], (options or Options()).digest),
        labels=lambda: labels_of(images.records, np.arange(len(images.records)), images.label),
    )


def _say_numbers(folder: str, name: str) -> None:
    say_once(
        f"{folder}: written of {name} by a release that kept TFDS's numbers of the classes, which "
        "for synsets are not ImageNet's; `dmd2 data --write` of the same data numbers them so."
    )


class _Images(NamedTuple):
    """The records as images; `info` is that of info.json."""

    records: ArrayRecords
    info: dict[str, Any]

    def read(self, i: int) -> tuple[Shaped[np.ndarray, "h w c"], int]:
        if self.info["encoding"] == "raw":
            batch = self.read_raw(np.array([i]))
            return batch["image"][0], int(batch["label"][0])
        (record,) = self.records.read(np.array([i]))
        label, name = self.label(record), self.records.describe(i)
        return decode_image(record[LABEL_BYTES:], name, self.info["resolution"]), label

    def label(self, record: bytes) -> int:
        label = int.from_bytes(record[:LABEL_BYTES], "little")
        self._check_label(label)
        return label

    def read_raw(self, indices: Int[np.ndarray, " n"]) -> Batch:
        shape = (*sides(self.info["resolution"]), self.info["channels"])
        size = LABEL_BYTES + math.prod(shape)
        parts = self.records.read(indices)
        if any(len(part) != size for part in parts):
            raise CorruptImageError(f"a record has not {size} bytes")
        table = np.frombuffer(b"".join(parts), np.uint8).reshape(len(parts), size)
        labels = np.ascontiguousarray(table[:, :LABEL_BYTES]).view("<i4")[:, 0].astype(np.int32)
        for label in (np.min(labels, initial=0), np.max(labels, initial=0)):
            self._check_label(int(label))
        images = table[:, LABEL_BYTES:].reshape(-1, *shape)
        return {"image": images, "label": labels}

    def _check_label(self, label: int) -> None:
        classes = self.info["num_classes"]
        if not 0 <= label < classes:
            raise CorruptImageError(f"class {label} of {classes}")


class ShardWriter:
    """Write one split; the names of the shards hold their number, known in the end.

    Attributes:
      files: [(file name, records), ...] when closed.
    """

    def __init__(self, folder: Path, split: str, encoding: str) -> None:
        """Begin a split in `folder`, "raw" or "png"."""
        self.files: list[tuple[str, int]] = []
        self._folder, self._split, self._encoding = folder, split, encoding
        self._writer: Any = None
        self._room = 0

    def add(self, image: Shaped[np.ndarray, "h w c"], label: int) -> None:
        """Append one uint8 image and its class."""
        if self._room < image.nbytes:
            self._finish()
            name = f"{self._split}-{len(self.files):05d}"
            self.files.append((name, 0))
            self._writer, self._room = open_writer(self._folder / name), SHARD_BYTES
        content = image.tobytes() if self._encoding == "raw" else encode_png(image)
        self._writer.write(label.to_bytes(LABEL_BYTES, "little") + content)
        self._room -= image.nbytes
        name, count = self.files[-1]
        self.files[-1] = (name, count + 1)

    def close(self) -> None:
        """Finish the last shard and give all their names."""
        self._finish()
        for i, (name, count) in enumerate(self.files):
            final = f"{name}-of-{len(self.files):05d}.array_record"
            os.replace(self._folder / name, self._folder / final)
            self.files[i] = (final, count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._finish()

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _read_info(path: str) -> dict[str, Any]:
    """Read and check info.json, whose class_names and listings earlier releases did not write."""
    file = fetched(path).expanduser() / INFO
    if not path or not file.is_file():
        raise Missing(
            f"config.data.path={path!r} has no {INFO}, expected a folder that `dmd2 data` "
            "wrote; write it by `dmd2 data --write=DIR`, or choose another config.data.name."
        )
    try:
        info = {"class_names": None, "listings": {}} | read_json(file)
        numbers = [info[key] for key in _WHOLE_NUMBERS]
        good = all(type(number) is int and 0 < number < 2**20 for number in numbers)
        info["resolution"] = size_of(*sides(info["resolution"]))
        good &= info["format"] == FORMAT and info["encoding"] in ENCODINGS
        good &= info["channels"] in (1, 3) and isinstance(info["name"], str)
        if (names := info["class_names"]) is not None:
            good &= isinstance(names, list) and len(names) == info["num_classes"]
            good &= all(isinstance(name, str) for name in names)
        for files in info["splits"].values():
            for name, count in files:
                # A name is of a file in this folder: it must lead nowhere else.
                good &= isinstance(name, str) and name == Path(name).name and name != ".."
                good &= type(count) is int and 0 < count < 2**40
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refused(file, f"{type(error).__name__}: {error}") from error
    if not good:
        raise _refused(file, "a value is not what it should be")
    return info


def _refused(file: Path, fault: str) -> Refused:
    return Refused(
        f"{file} is refused ({fault}), expected what `dmd2 data` writes, format {FORMAT}; "
        "write it again."
    )
