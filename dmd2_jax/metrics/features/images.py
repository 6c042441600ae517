"""The images of an evaluation: a folder, zip or .npz, in batches that never hold all of them."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.sizes import Size, Sizes, sides, size_of
from dmd2_jax.data import arrays, image_folder
from dmd2_jax.data.reading import source as reading
from dmd2_jax.data.reading.contract import Batch, Options, Source, SourceDefaults
from dmd2_jax.data.reading.dataset import ImageDataset
from dmd2_jax.data.reading.decode import (
    MAX_BYTES,
    CorruptImageError,
    ImageRefusedError,
    image_endings,
    is_image,
    turned_size,
)
from dmd2_jax.data.reading.folder import FileTree, Folder, listed_endings
from dmd2_jax.data.reading.npz import npz_names, open_npz
from dmd2_jax.data.reading.source import CorruptDataError, DecodedSource
from dmd2_jax.data.reading.zip_file import ZipFolder
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.prefetch import Prefetch
from dmd2_jax.typing import Int

__all__ = [
    "ImageFiles",
    "Sized",
    "check_comparable",
    "holds_images",
    "image_batches",
    "open_images",
]


class ImageFiles(SourceDefaults):
    """The images of a folder or zip, of which each counts; implements `data.Source`.

    Training may go on without a corrupt image, and its errors name keys of the config. Here such
    an image is an error, and there is no config.
    """

    def __init__(self, path: str, source: DecodedSource) -> None:
        """Take the files.

        Args:
          path: of the folder or zip, for messages.
          source: its images, which may go on to the next one where one is corrupt.

        Raises:
          ValueError: if the source has met a corrupt image.
        """
        self._path, self._source = path, source
        self.name, self.num_classes = source.name, source.num_classes
        self.resolution, self.channels = source.resolution, source.channels
        self._check_sound()

    def __len__(self) -> int:
        return len(self._source)

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the examples of these numbers, in this order.

        Raises:
          ValueError: if an image cannot be read or is not like the first; it is named.
        """
        with _own_words(self._path, self.resolution):
            batch = self._source.examples(indices)
        self._check_sound()
        return batch

    def describe(self, index: int) -> str:
        """Return the file of an image, for messages."""
        return self._source.describe(index)

    def _check_sound(self) -> None:
        found = list(self._source.corrupt.values())
        if found:
            raise Refused(
                f"cannot read {reading.listed(found)}, expected sound images, as every "
                f"image of {self._path} counts; copy it again, or take it away."
            )


def open_images(path: str | os.PathLike) -> Source:
    """Open a folder, zip or .npz of images of one size.

    Args:
      path: the folder or the .zip, in one of `data.image_folder`'s layouts: with EDM's
        dataset.json, a folder a class, or images alone; or an .npz of arr_0, uint8 [n, h, w, c],
        and perhaps arr_1, labels [n], as guided-diffusion and consistency models write it.

    Returns:
      The images, sorted by name (of an .npz in its order); an image that cannot be decoded is an
      error when it is read, and its `describe` gives the file of a number.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if there are no images, or the layout or an image is refused.
    """
    root = fetched(path).expanduser()
    if not root.exists():
        raise Missing(
            f"images {str(path)!r} do not exist, expected a folder, zip or .npz of images; mind "
            "the working directory."
        )
    if root.suffix.lower() == ".npz" and root.is_file():
        return _ArrayImages(root)
    tree: FileTree = (
        Folder(root, is_image) if root.is_dir() else ZipFolder(root, is_image, MAX_BYTES)
    )
    if not tree.names:
        others = f" (but {listed_endings(tree.others)})" if tree.others else ""
        raise Refused(
            f"images {str(path)!r} has no file ending in {', '.join(image_endings())}{others}, "
            "expected at least one; check the path, or convert them."
        )
    size = _first_size(tree)
    # All that are met, so that they are named by `ImageFiles`.
    options = Options(max_corrupt=len(tree.names))
    with _own_words(str(path), size):
        source = image_folder.load(str(path), "all", size, options)
    return ImageFiles(str(path), source)


def holds_images(path: str | os.PathLike) -> bool:
    """Return whether a .npz has images, by the names of its arrays."""
    return bool(npz_names(fetched(path).expanduser()) & set(arrays.IMAGES))


class _ArrayImages(SourceDefaults):
    """The images of an .npz, which stay on disk where they are not deflated."""

    def __init__(self, file: Path) -> None:
        found = open_npz(file, (*arrays.IMAGES, *arrays.LABELS))
        images, labels = arrays.images_and_labels(found, str(file))
        classes = int(labels.max(initial=0)) + 1
        self._data = ImageDataset(images, labels, classes, str(file))
        self.name, self.num_classes = file.name, classes
        self.resolution, self.channels = self._data.resolution, self._data.channels

    def __len__(self) -> int:
        return len(self._data)

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        return self._data.examples(indices)

    def describe(self, index: int) -> str:
        return f"{self._data.name} image {index}"


def _first_size(tree: FileTree) -> Size:
    """Return the size of the first image, from its header; others are refused later."""
    name = tree.names[0]
    try:
        return size_of(*turned_size(tree.read(name, MAX_BYTES)))
    except (CorruptImageError, OSError, Refused) as error:
        raise Refused(
            f"{tree.place}/{name} cannot be read ({error}), expected an image; remove it or copy "
            "it again."
        ) from error


@contextlib.contextmanager
def _own_words(path: str, resolution: Size) -> Iterator[None]:
    """Say what is wrong with a file without the reader's advice, which is for training.

    Args:
      path: the folder or zip.
      resolution: of its first image.

    Raises:
      ValueError: for an image that is refused, and where none can be read.
    """
    log, (height, width) = logging.getLogger(reading.__name__), sides(resolution)
    # It warns of a corrupt image that the next one takes its place. Here it does not: it is an
    # error in a moment, which names the file.
    log.addFilter(_is_no_warning)
    try:
        yield
    except ImageRefusedError as error:
        raise Refused(
            f"{str(error).partition(', expected ')[0]}, expected opaque 8-bit grey or RGB of "
            f"{width} x {height} pixels. All images of {path} must be like its first, "
            f"which is {width} x {height}; prepare them alike, or take this one away."
        ) from error
    except CorruptDataError as error:
        raise Refused(
            f"none of the images of {path} can be read, expected image files; copy them again."
        ) from error
    finally:
        log.removeFilter(_is_no_warning)


def _is_no_warning(record: logging.LogRecord) -> bool:
    return record.levelno != logging.WARNING


def image_batches(source: Source, batch_size: int, limit: int = 0) -> Iterator[Batch]:
    """Read a source from its first image to its last, a thread ahead of who uses them.

    Args:
      source: the images.
      batch_size: images at a time, >= 1; the last batch may be smaller.
      limit: read no more than these; 0: all.

    Yields:
      {"image": uint8 [b, h, w, c], "label": int32 [b]}.

    Raises:
      ValueError: whatever the source raises, as `ImageFiles` for an image that cannot be read.
    """
    count = min(limit, len(source)) if limit else len(source)
    steps = -(-count // batch_size)

    def read(i: int) -> Batch:
        begin = i * batch_size
        return source.examples(np.arange(begin, min(begin + batch_size, count)))

    with Prefetch(read, 0, steps) as ahead:
        for i in range(steps):
            yield ahead.take(i)


class Sized(Protocol):
    """Square images of a kind: what `check_comparable` looks at.

    Attributes:
      name: for messages.
      resolution: height and width in pixels.
      channels: 1 or 3.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 (documented above)

    @property
    def resolution(self) -> Sizes: ...  # noqa: D102

    @property
    def channels(self) -> int: ...  # noqa: D102


def check_comparable(real: Sized, fake: Sized) -> None:
    """Refuse two sets of images that differ in size or colour.

    A feature network that resizes would compare them all the same, and measure the resizing.

    Args:
      real: a source of images, or a network that makes them.
      fake: likewise.

    Raises:
      ValueError: if resolution or channels differ.
    """
    sizes = [(*sides(s.resolution), s.channels) for s in (real, fake)]
    if sizes[0] != sizes[1]:
        raise Refused(
            f"{fake.name} has images of (height, width, channels) {sizes[1]}, expected {sizes[0]} "
            f"as {real.name} has; prepare both at one resolution and as both grey or both colour."
        )
