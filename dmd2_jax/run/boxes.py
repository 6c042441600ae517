"""Boxes: the parts that a sharding cuts an array into, all of one shape."""

import itertools
import math
from collections.abc import Iterator, Sequence

__all__ = ["Box", "box_of", "boxes_of", "common", "shape_of", "size_of", "slices_of"]

Box = tuple[tuple[int, int], ...]
"""Where a box begins and where it ends, by axis."""


def box_of(index: Sequence[slice], shape: Sequence[int]) -> Box:
    """Return the box that slices select of an array of a shape."""
    bounds = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in bounds)


def boxes_of(shape: Sequence[int], box: Sequence[int]) -> Iterator[Box]:
    """Yield the boxes of one shape that an array is cut into.

    Args:
      shape: of the array.
      box: of each; it divides the array's.
    """
    starts = (range(0, max(1, size), max(1, step)) for size, step in zip(shape, box, strict=True))
    for corner in itertools.product(*starts):
        yield tuple((start, start + step) for start, step in zip(corner, box, strict=True))


def common(a: Box, b: Box) -> Box | None:
    """Return what two boxes of an array have in common; None if it is nothing."""
    both = tuple(
        (max(start, begin), min(stop, end))
        for (start, stop), (begin, end) in zip(a, b, strict=True)
    )
    return both if all(start < stop for start, stop in both) else None


def shape_of(box: Box) -> tuple[int, ...]:
    """Return the shape of a box."""
    return tuple(stop - start for start, stop in box)


def size_of(box: Box) -> int:
    """Return how many elements a box has."""
    return math.prod(shape_of(box))


def slices_of(box: Box, within: Box | None = None) -> tuple[slice, ...]:
    """Return what selects a box of its array, or of a box of that which it lies in."""
    corner = [0] * len(box) if within is None else [start for start, _ in within]
    return tuple(
        slice(start - at, stop - at) for (start, stop), at in zip(box, corner, strict=True)
    )
