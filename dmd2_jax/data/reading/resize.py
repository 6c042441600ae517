"""Images of any size to one: they are made to cover it, and the middle is kept."""

from typing import NamedTuple

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, sides
from dmd2_jax.data.reading.classes import Listing
from dmd2_jax.data.reading.contract import Batch, Source, SourceDefaults
from dmd2_jax.data.reading.files import Files
from dmd2_jax.typing import Int, Shaped

__all__ = ["Picture", "Resized", "crop_to", "size_fault"]


class Picture(NamedTuple):
    """One image, made to fit.

    Attributes:
      pixels: uint8 [height, width, c].
      original: height and width of the file's image.
      corner: top and left of the part that was kept, in pixels after resizing.
    """

    pixels: Shaped[np.ndarray, "h w c"]
    original: tuple[int, int]
    corner: tuple[int, int]


def crop_to(image: Shaped[np.ndarray, "h w c"], size: Size) -> Picture:
    """Resize an image until it just covers a size, by Lanczos' filter, and keep the middle.

    The filter is Pillow's, which widens with the step down, so that nothing aliases.

    Args:
      image: uint8 [h, w, c], c is 1 or 3; one of this size stays as it is.
      size: of the result.
    """
    from PIL import Image

    (height, width, channels), (high, broad) = image.shape, sides(size)
    scale = max(high / height, broad / width)
    tall, wide = max(high, round(height * scale)), max(broad, round(width * scale))
    if (tall, wide) != (height, width):
        whole = Image.fromarray(image[..., 0] if channels == 1 else image)
        resized = np.asarray(whole.resize((wide, tall), Image.Resampling.LANCZOS))
        image = resized.reshape(tall, wide, channels)
    top, left = (tall - high) // 2, (wide - broad) // 2
    return Picture(image[top : top + high, left : left + broad], (height, width), (top, left))


def size_fault(size: tuple[int, int], wanted: Size, resize: str) -> str:
    """Say why an image of this size cannot be used; "": it can.

    Args:
      size: its width and height.
      wanted: the size that it is to have: `config.model.resolution`.
      resize: `config.data.resize`.
    """
    height, width = sides(wanted)
    got = f"is {size[0]} x {size[1]} pixels, expected"
    covers = size[0] >= width and size[1] >= height
    if resize == "none" and size != (width, height):
        how = "crop" if covers else "enlarge"
        return (
            f"{got} {width} x {height} as config.model.resolution; prepare the images at one size "
            "(none is resized silently), set the resolution, or let them be resized by "
            f"`config.data.resize={how}`."
        )
    if resize == "crop" and not covers:
        least = f"{width} each way" if width == height else f"{width} x {height}"
        return (
            f"{got} at least {least}, as config.model.resolution; remove it, lower the "
            "resolution, or let small ones be made larger by `config.data.resize=enlarge`."
        )
    return ""


class Resized(SourceDefaults):
    """A source whose images, all of one size, are resized as they are read."""

    def __init__(self, source: Source, size: Size, resize: str) -> None:
        """Take the source.

        Args:
          source: of images.
          size: to give them.
          resize: "crop" or "enlarge".

        Raises:
          Refused: if they are smaller, and are not to be made larger.
        """
        height, width = sides(source.resolution)
        if fault := size_fault((width, height), size, resize):
            raise Refused(f"{source.name}: an image {fault}")
        self._source = source
        self.name, self.num_classes, self.channels = (
            source.name,
            source.num_classes,
            source.channels,
        )
        self.resolution, self.identity = size, source.identity
        self.class_names, self.formerly = source.class_names, source.formerly
        self.corrupt = source.corrupt

    def __len__(self) -> int:
        return len(self._source)

    @property
    def listing(self) -> Listing | None:
        """The source's."""
        return self._source.listing

    @property
    def files(self) -> Files | None:  # type: ignore[override]
        """The source's."""
        return self._source.files

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the examples of these numbers, in this order."""
        batch = self._source.examples(indices)
        images = [crop_to(image, self.resolution).pixels for image in batch["image"]]
        shape = (len(images), *sides(self.resolution), self.channels)
        return {**batch, "image": np.array(images, np.uint8).reshape(shape)}

    def known_labels(self) -> Int[np.ndarray, " n"] | None:
        """Return the source's."""
        return self._source.known_labels()

    def sizes(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 2"] | None:
        """Return what they were before."""
        return np.tile(sides(self._source.resolution), (len(indices), 1))

    def describe(self, index: int) -> str:
        """Return the source's name of an example."""
        return self._source.describe(index)
