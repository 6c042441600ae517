"""Which of several shapes each image of a cache is given."""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dmd2_jax.config.sizes import Size, sides
from dmd2_jax.data.reading.captions import CaptionedImages
from dmd2_jax.data.reading.decode import CorruptImageError, ImageRefusedError
from dmd2_jax.typing import Int

__all__ = ["nearest_shape", "numbers_by_shape"]


def nearest_shape(image: tuple[int, int], shapes: Sequence[Size]) -> int:
    """Return the number of the shape whose ratio of width to height is nearest to an image's.

    Of several the largest that needs no enlarging, or else the smallest.

    Args:
      image: its height and width.
      shapes: those there are.
    """

    def order(number: int) -> tuple[float, bool, int]:
        height, width = sides(shapes[number])
        off = abs(math.log(image[1] * height / (image[0] * width)))
        enlarged = height > image[0] or width > image[1]
        return round(off, 9), enlarged, height * width * (1 if enlarged else -1)

    return min(range(len(shapes)), key=order)


def numbers_by_shape(
    captioned: CaptionedImages | None, count: int, shapes: Sequence[Size]
) -> list[Int[np.ndarray, " n"]]:
    """Return the examples of each shape, by their numbers; all headers are read where it matters.

    Args:
      captioned: the images; None: prompts alone.
      count: how many examples there are.
      shapes: those there are.

    Returns:
      Numbers for each shape, increasing. An image whose header is damaged is of the first shape:
      what reads it says so.
    """
    if captioned is None or len(shapes) == 1:
        return [np.arange(count)]
    images = captioned

    def chosen(number: int) -> int:
        try:
            return nearest_shape(images.size(number), shapes)
        except (CorruptImageError, ImageRefusedError):
            return 0

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="headers") as pool:
        found = np.array(list(pool.map(chosen, range(count))))
    return [np.flatnonzero(found == number) for number in range(len(shapes))]
