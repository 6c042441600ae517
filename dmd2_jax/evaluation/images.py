"""The images of an evaluation: a folder or zip, in batches that never hold all of them."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from dmd2_jax.data import image_folder
from dmd2_jax.data.dataset import Batch, Options, Source
from dmd2_jax.data.reading.decode import MAX_BYTES, CorruptImageError, ImageRefusedError
from dmd2_jax.data.reading.folder import FileTree, Folder
from dmd2_jax.data.reading.source import DecodedSource
from dmd2_jax.data.reading.zip_file import ZipFolder
from dmd2_jax.runtime.prefetch import Prefetch

__all__ = ["Sized", "check_comparable", "image_batches", "open_images"]

_ENDINGS = (".png", ".jpg", ".jpeg")


def open_images(path: str | os.PathLike) -> DecodedSource:
    """Open a folder or zip of PNG and JPEG images of one size.

    Args:
      path: the folder or the .zip, in one of `data.image_folder`'s layouts: with EDM's
        dataset.json, a folder a class, or images alone.

    Returns:
      The images, sorted by name; an image that cannot be decoded is an error when it is read, and
      its `describe` gives the file of a number.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if there are no images, or the layout or an image is refused.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise FileNotFoundError(
            f"images {str(path)!r} do not exist, expected a folder or zip of images; mind the "
            "working directory."
        )
    tree: FileTree = Folder(root, _wanted) if root.is_dir() else ZipFolder(root, _wanted, 2**28)
    if not tree.names:
        raise ValueError(
            f"images {str(path)!r} has no file ending in {', '.join(_ENDINGS)}, expected at least "
            "one; check the path."
        )
    return image_folder.load(str(path), "all", _first_width(tree), Options(max_corrupt=0))


def _wanted(name: str) -> bool:
    return name.lower().endswith(_ENDINGS)


def _first_width(tree: FileTree) -> int:
    """Return the width of the first image, from its header; a wrong one is refused later."""
    from PIL import Image

    name = tree.names[0]
    try:
        content = tree.read(name, MAX_BYTES)
        return Image.open(io.BytesIO(content), formats=("PNG", "JPEG")).size[0]
    except (CorruptImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise ValueError(
            f"{tree.place}/{name} cannot be read ({type(e).__name__}: {e}), expected a PNG or "
            "JPEG; remove it or copy it again."
        ) from e


def image_batches(source: Source, batch_size: int, limit: int = 0) -> Iterator[Batch]:
    """Read a source from its first image to its last, a thread ahead of who uses them.

    Args:
      source: the images.
      batch_size: images at a time, >= 1; the last batch may be smaller.
      limit: read no more than these; 0: all.

    Yields:
      {"image": uint8 [b, h, w, c], "label": int32 [b]}.

    Raises:
      ValueError: if an image cannot be read or is of another size than the first; it is named.
    """
    count = min(limit, len(source)) if limit else len(source)
    steps = -(-count // batch_size)

    def read(i: int) -> Batch:
        begin = i * batch_size
        try:
            return source.examples(np.arange(begin, min(begin + batch_size, count)))
        except ImageRefusedError as error:
            raise ValueError(
                f"{error} All images of one set must be like its first, which is "
                f"{source.resolution} x {source.resolution}."
            ) from error

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
    def resolution(self) -> int: ...  # noqa: D102

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
    sizes = [(s.resolution, s.resolution, s.channels) for s in (real, fake)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{fake.name} has images of (height, width, channels) {sizes[1]}, expected {sizes[0]} "
            f"as {real.name} has; prepare both at one resolution and as both grey or both colour."
        )
