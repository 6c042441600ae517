"""Fashion-MNIST from its four IDX files: 60,000 + 10,000 grey images of 28 x 28 pixels.

The files, gzipped or plain, come from the Debian package dataset-fashion-mnist
(/usr/share/datasets/fashion-mnist) or from the download folder of TFDS.

Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv 1708.07747. The IDX format: a
big-endian magic number 0x0000_08_dd (unsigned bytes, dd axes), dd sizes, then the bytes.
"""

import contextlib
import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np

from dmd2_jax.data.dataset import ImageDataset, check_split, pad_to, select_split

RESOLUTIONS = (28, 32)  # as stored, and padded to a power of two for U-Nets
NUM_CLASSES = 10
_FILE_SPLITS = {"train": "train", "test": "t10k"}  # our split -> prefix of the file names
_MAX_BYTES = 2**28  # five times the real thing: what a lying header can make us allocate


def load(path: str, split: str = "train", resolution: int = 28) -> ImageDataset:
    """Load Fashion-MNIST from the folder `path`.

    Args:
      path: folder of {train,t10k}-{images-idx3,labels-idx1}-ubyte, each with or without .gz.
      split: "train", "test" or "all" (train, then test).
      resolution: 28, or 32 for two black lines on every side.

    Returns:
      [n, resolution, resolution, 1] images.

    Raises:
      FileNotFoundError: if files are missing; lists them.
      ValueError: if a file is truncated or is not what its name says, or the split or the
        resolution does not exist.
    """
    if resolution not in RESOLUTIONS:
        raise ValueError(
            f"config.data.resolution={resolution} for fashion_mnist, expected one of "
            f"{RESOLUTIONS}; choose 32 for U-Nets that halve the image several times."
        )
    check_split(split, _FILE_SPLITS, "fashion_mnist")
    wanted = list(_FILE_SPLITS) if split == "all" else [split]
    files = _find_files(path, wanted)
    splits = {name: _read_split(*files[name]) for name in wanted}
    images, labels = select_split(splits, split, "fashion_mnist")
    return pad_to(ImageDataset(images, labels, NUM_CLASSES, "fashion_mnist"), resolution)


def _find_files(path: str, splits: list[str]) -> dict[str, tuple[Path, Path]]:
    """Find the image and the label file of each split, or say which are missing."""
    remedy = (
        "install the Debian package dataset-fashion-mnist and set "
        "config.data.path=/usr/share/datasets/fashion-mnist, or point it at a folder of the files."
    )
    if not path:
        raise ValueError(f"config.data.path is empty, expected a folder of IDX files; {remedy}")
    folder = Path(path).expanduser()
    found: dict[str, tuple[Path, Path]] = {}
    missing = []
    for split in splits:
        pair = []
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{_FILE_SPLITS[split]}-{kind}-ubyte"
            existing = [f for f in (folder / name, folder / f"{name}.gz") if f.is_file()]
            pair += existing[:1]
            missing += [] if existing else [f"{name}[.gz]"]
        if len(pair) == 2:
            found[split] = (pair[0], pair[1])
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; {remedy}")
    return found


def _read_split(image_file: Path, label_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one split and check that its two files belong together."""
    images, labels = read_idx(image_file, (RESOLUTIONS[0],) * 2), read_idx(label_file, ())
    if len(images) != len(labels):
        raise ValueError(
            f"{label_file} has {len(labels)} labels, expected {len(images)}, one an image of "
            f"{image_file.name}; take both files from the same copy."
        )
    if labels.size and labels.max() >= NUM_CLASSES:
        raise ValueError(
            f"{label_file} has label {labels.max()}, expected 0..{NUM_CLASSES - 1}; the file is "
            "damaged or of another data set: fetch it again."
        )
    return images[..., None], labels.astype(np.int32)


def read_idx(path: Path, item_shape: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in .gz.

    Args:
      path: the file.
      item_shape: the size that one item must have; () for labels.

    Returns:
      uint8 [n, *item_shape].

    Raises:
      ValueError: if the magic number, the item size or the length of the file is wrong.
    """
    header_bytes = 4 * (2 + len(item_shape))
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        header = _read_at_most(stream, header_bytes)
        if len(header) < header_bytes:
            raise ValueError(
                f"{path} ends after {len(header)} bytes, expected a header of {header_bytes}; "
                "the file is truncated or damaged: fetch it again."
            )
        magic, count, *shape = struct.unpack(f">{header_bytes // 4}I", header)
        expected_magic = 0x0800 + 1 + len(item_shape)
        if magic != expected_magic:
            raise ValueError(
                f"{path} begins with magic number {magic}, expected {expected_magic} (IDX, "
                f"unsigned bytes, {1 + len(item_shape)} axes); it is another kind of file."
            )
        if tuple(shape) != item_shape:
            raise ValueError(
                f"{path} holds items of size {tuple(shape)}, expected {item_shape}; it is a file "
                "of another data set."
            )
        expected = count * int(np.prod(item_shape, dtype=np.int64))
        data = _read_at_most(stream, min(expected, _MAX_BYTES) + 1)
    if len(data) != expected:
        found = f"{len(data)}" if len(data) <= expected else f"more than {expected}"
        raise ValueError(
            f"{path} has {found} bytes after its header, expected {expected} for {count} items; "
            "the file is truncated or damaged: fetch it again."
        )
    return np.frombuffer(data, np.uint8).reshape(count, *item_shape)


def _read_at_most(stream: gzip.GzipFile | io.BufferedReader, count: int) -> bytes:
    """Read up to `count` bytes; what a damaged gzip stream yields before it breaks counts."""
    data = bytearray()
    with contextlib.suppress(EOFError, gzip.BadGzipFile, zlib.error):
        while chunk := stream.read1(min(count - len(data), 2**20)):
            data += chunk
    return bytes(data)
