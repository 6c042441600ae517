"""Heights and widths: a number is a square, (height, width) one shape, ((h, w), ...) several.

In text 64, 96x128 (height x width), and 96x128,128x96.
"""

from collections.abc import Iterator
from typing import Any

from dmd2_jax.config.refused import Refused

__all__ = [
    "EXPECTED",
    "Size",
    "Sizes",
    "nearest_size",
    "not_divided",
    "read_sizes",
    "say_sizes",
    "sides",
    "size_of",
    "sizes_of",
]

Size = int | tuple[int, int]
"""One shape: the side of a square, or height and width that differ."""

Sizes = int | tuple[int, int] | tuple[tuple[int, int], ...]
"""One shape or several."""

EXPECTED = "a number of 1 or more, HEIGHTxWIDTH, or several of these between commas"

_LARGEST = 2**16


def sides(value: Sizes) -> tuple[int, int]:
    """Return height and width; of several shapes those of the first."""
    return next(_pairs(value))


def size_of(height: int, width: int) -> Size:
    """Return a shape as configs write it: a square by its side."""
    return height if height == width else (height, width)


def sizes_of(value: Sizes) -> tuple[Size, ...]:
    """Return every shape, in the order given.

    Raises:
      Refused: if the value is none, or a shape stands there twice.
    """
    found = tuple(size_of(*pair) for pair in _pairs(value))
    if len(set(found)) < len(found):
        raise Refused(f"{say_sizes(value)} has a shape twice, expected each once; leave one away.")
    return found


def read_sizes(text: str) -> Sizes:
    """Read shapes from text.

    Raises:
      Refused: if it is none.
    """
    stripped = text.strip()
    try:
        if stripped[:1] in ("(", "["):  # a pair as Python writes it
            height, width = (int(word) for word in stripped.strip("()[]").split(",") if word)
            return size_of(*sides((height, width)))
        pairs = tuple(_read_pair(word) for word in stripped.split(","))
    except ValueError as error:
        raise Refused(f"{text!r}, expected {EXPECTED}; try 512, 448x576 or 512,448x576.") from error
    several = sizes_of(pairs)
    return several[0] if len(pairs) == 1 else pairs


def say_sizes(value: Sizes) -> str:
    """Return shapes as text, from which `read_sizes` reads them."""
    pairs = _pairs(value)
    return ",".join(str(h) if h == w else f"{h}x{w}" for h, w in pairs)


def not_divided(value: Sizes, unit: int) -> str:
    """Say that latents of the first shape of some are not divided by a network."""
    pair = sides(value)
    what = f"side is {pair[0]}" if pair[0] == pair[1] else f"sides are {pair[0]}x{pair[1]}"
    return (
        f"the latents' {what}, expected a multiple of {unit}, by which the network divides them; "
        f"set model.resolution, for example to {say_sizes(nearest_size(pair, unit))}."
    )


def nearest_size(value: Sizes, unit: int) -> Size:
    """Return the shape nearest to the first of some whose sides are multiples of a number."""
    height, width = (max(1, round(side / unit)) * unit for side in sides(value))
    return size_of(height, width)


def _read_pair(word: str) -> tuple[int, int]:
    height, x, width = word.strip().lower().partition("x")
    return sides((int(height), int(width if x else height)))


def _pairs(value: Any) -> Iterator[tuple[int, int]]:
    if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple):
        for one in value:
            yield _pair(one, value)
    else:
        yield _pair(value, value)


def _pair(one: Any, value: Any) -> tuple[int, int]:
    both = tuple(one) if isinstance(one, list | tuple) else (one, one)
    if len(both) != 2 or any(type(side) is not int or not 0 < side < _LARGEST for side in both):
        raise Refused(f"{value!r:.80}, expected {EXPECTED}; try 512 or 448x576.")
    return both
