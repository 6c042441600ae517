"""IDX files, as MNIST and its kin have them: {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz].

A name may have more in front (emnist-letters-train-images-idx3-ubyte.gz), a full stop before
idx, and "test" for "t10k". Images smaller than config.model.resolution get a black border. Without
test files `config.data.test_fraction` of every class is held out by a fixed seed.

Source of the format: a big-endian magic number 0x0000_08_dd (unsigned bytes, dd axes), dd sizes,
then the bytes.
"""

import contextlib
import gzip
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.sizes import Size, sides
from dmd2_jax.data.reading.contract import Options
from dmd2_jax.data.reading.dataset import (
    ImageDataset,
    check_split,
    pad_to,
    select_split,
    split_indices,
)
from dmd2_jax.runtime.fetched import fetched

MAX_BYTES = 2**30
"""Of one file's content: 20 times EMNIST. What a lying header can make us allocate."""

Pair = tuple[Path, Path]
"""The file of images and the file of labels."""

_NAME = re.compile(r"(.*?)(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?")


def load(
    path: str, split: str = "train", resolution: Size = 28, options: Options | None = None
) -> ImageDataset:
    """Load grey images from a folder of IDX files.

    Args:
      path: the folder.
      split: "train", "test" or "all" (train, then test).
      resolution: the images' own, or more for a black border.
      options: test_fraction and resize count.

    Returns:
      Grey images of that size; as many classes as the largest label of any split
      asks for.

    Raises:
      FileNotFoundError: if there are no such files.
      ValueError: if a file is truncated or is not what its name says, the split does not exist,
        or the images are larger than `resolution`.
    """
    options = options or Options()
    check_split(split, ("train", "test"), "idx")
    splits = {name: read_pair(*pair) for name, pair in _find_files(path).items()}
    num_classes = max(int(labels.max(initial=0)) for _, labels in splits.values()) + 1
    if "test" in splits:
        images, labels = select_split(splits, split, "idx")
    else:
        images, labels = splits["train"]
        chosen = split_indices(labels, split, options.test_fraction, str(path))
        images, labels = images[chosen], labels[chosen]
    name = f"idx {Path(path).name}"
    dataset = ImageDataset(images, labels, num_classes, name)
    (high, broad), (height, width) = sides(dataset.resolution), sides(resolution)
    larger = (high > height or broad > width) and options.resize != "none"
    return dataset if larger else pad_to(dataset, resolution)  # smaller: by the caller


def _find_files(path: str) -> dict[str, Pair]:
    """Find the files of train and, where there are some, of test."""
    form = "expected a folder of NAME-images-idx3-ubyte and NAME-labels-idx1-ubyte files"
    if not path:
        raise Refused(f"config.data.path is empty, {form}; set it.")
    folder = fetched(path).expanduser()
    found: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(folder.glob("*idx*")):
        if (match := _NAME.fullmatch(file.name)) and file.is_file():
            split = "train" if match[2] == "train" else "test"
            found.setdefault((split, match[3]), []).append(file)
    for files in found.values():
        # A file beside its gzipped twin is no question, files of two data sets are.
        if len({file.name.removesuffix(".gz") for file in files}) > 1:
            raise Refused(
                f"{folder} has several: {', '.join(file.name for file in files)}, expected one "
                "data set a folder; move the others away."
            )
    pairs = {}
    for split in ("train", "test"):
        missing = [kind for kind in ("images", "labels") if (split, kind) not in found]
        if missing and (split == "train" or len(missing) == 1):
            raise Missing(f"{folder} has no {split} {' and '.join(missing)}, {form}.")
        if not missing:
            pairs[split] = (found[split, "images"][0], found[split, "labels"][0])
    return pairs


def read_pair(
    image_file: Path,
    label_file: Path,
    *,
    item_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read one split and check that its two files belong together.

    Args:
      image_file: the images.
      label_file: their labels.
      item_shape: the size that one image must have; None: any.
      num_classes: how many classes there may be; None: any number.

    Returns:
      [n, h, w, 1] uint8 images, [n] int32 labels.

    Raises:
      ValueError: if a file is refused, or the two do not fit together.
    """
    images = read_idx(image_file, 3, item_shape)
    labels = read_idx(label_file, 1)
    if len(images) != len(labels):
        raise Refused(
            f"{label_file} has {len(labels)} labels, expected {len(images)}, one an image of "
            f"{image_file.name}; take both files from the same copy."
        )
    if num_classes is not None and labels.size and labels.max() >= num_classes:
        raise Refused(
            f"{label_file} has label {labels.max()}, expected 0..{num_classes - 1}; the file is "
            "damaged or of another data set: fetch it again."
        )
    return images[..., None], labels.astype(np.int32)


def read_idx(path: Path, axes: int, item_shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in .gz.

    Args:
      path: the file.
      axes: how many it must have: 3 for grey images, 1 for labels.
      item_shape: the size that one item must have; None: any.

    Returns:
      uint8 [n, *item_shape].

    Raises:
      ValueError: if the magic number, the item size or the length of the file is wrong.
    """
    header_bytes = 4 * (1 + axes)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        header = _read_at_most(stream, header_bytes)
        if len(header) < header_bytes:
            raise Refused(
                f"{path} ends after {len(header)} bytes, expected a header of {header_bytes}; "
                "the file is truncated or damaged: fetch it again."
            )
        magic, count, *sides = struct.unpack(f">{1 + axes}I", header)
        if magic != 0x0800 + axes:
            raise Refused(
                f"{path} begins with magic number {magic}, expected {0x0800 + axes} (IDX, "
                f"unsigned bytes, {axes} axes); it is another kind of file."
            )
        shape = tuple(sides)
        if item_shape is not None and shape != item_shape:
            raise Refused(
                f"{path} holds items of size {shape}, expected {item_shape}; it is a file "
                "of another data set."
            )
        expected = int(np.prod([count, *shape], dtype=object))
        data = _read_at_most(stream, min(expected, MAX_BYTES) + 1)
    if len(data) != expected:
        found = f"{len(data)}" if len(data) <= expected else f"more than {expected}"
        raise Refused(
            f"{path} has {found} bytes after its header, expected {expected} for {count} items; "
            "the file is truncated or damaged: fetch it again."
        )
    return np.frombuffer(data, np.uint8).reshape(count, *shape)


def _read_at_most(stream: gzip.GzipFile | io.BufferedReader, count: int) -> bytes:
    """Read up to `count` bytes; what a damaged gzip stream yields before it breaks counts."""
    data = bytearray()
    with contextlib.suppress(EOFError, gzip.BadGzipFile, zlib.error):
        while chunk := stream.read1(min(count - len(data), 2**20)):
            data += chunk
    return bytes(data)
