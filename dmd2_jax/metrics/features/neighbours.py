"""Distances between many vectors in blocks: nearest neighbours, and who lies in whose ball.

Squared distances come from |a|^2 + |b|^2 - 2 a.b in float64, one block of them in memory at a
time. Vectors are moved to a common centre first, which leaves as many digits as there are; only a
block of them is in float64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Float, Int

__all__ = ["Ball", "balls", "count_inside", "distance_blocks"]

_ROWS, _COLUMNS = 1024, 8192  # of a block of distances: 64 MB
_TIE = 1e-11
"""Rounding of a squared distance, relative to the largest squared norm: distances that differ by
less are equal, so that duplicates lie on the border of their balls of radius 0."""


class Ball(NamedTuple):
    """Balls around vectors, each out to its k-th nearest neighbour.

    Attributes:
      centres: [n, d].
      radii: [n] squared radii.
    """

    centres: Float[np.ndarray, "n d"]
    radii: Float64[np.ndarray, " n"]


def distance_blocks(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> Iterator[tuple[slice, slice, Float64[np.ndarray, "rows columns"]]]:
    """Go through the squared distances of all pairs, row by row of blocks.

    Args:
      a: [n, d].
      b: [m, d].

    Yields:
      (rows of `a`, rows of `b`, their squared distances, >= 0).
    """
    centre = b.mean(axis=0, dtype=np.float64)
    for begin in range(0, len(a), _ROWS):
        rows = slice(begin, min(begin + _ROWS, len(a)))
        left = a[rows] - centre
        for start in range(0, len(b), _COLUMNS):
            columns = slice(start, min(start + _COLUMNS, len(b)))
            right = b[columns] - centre
            distances = left @ right.T
            distances *= -2.0
            distances += _norms(left)[:, None]
            distances += _norms(right)
            yield rows, columns, np.maximum(distances, 0.0, out=distances)


def _norms(x: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", x, x)


def _largest_norm(x: np.ndarray, centre: np.ndarray) -> float:
    parts = (x[begin : begin + _COLUMNS] - centre for begin in range(0, len(x), _COLUMNS))
    return max(_norms(part).max() for part in parts)


def balls(features: Float[np.ndarray, "n d"], k: int) -> Ball:
    """Return the ball around each vector that reaches to its k-th nearest other vector.

    Args:
      features: [n, d], n > k.
      k: which neighbour, >= 1.

    Returns:
      Centres and squared radii.

    Raises:
      ValueError: if there are not enough vectors.
    """
    check_enough(len(features), k)
    radii = np.empty(len(features))
    best = np.empty((0, 0))
    for rows, columns, distances in distance_blocks(features, features):
        if columns.start == 0:
            best = np.full((rows.stop - rows.start, k), np.inf)
        own = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
        distances[own - rows.start, own - columns.start] = np.inf
        if distances.shape[1] > k:
            distances.partition(k - 1, axis=1)
        best = np.concatenate([best, distances[:, :k]], axis=1)
        best.partition(k - 1, axis=1)
        best = best[:, :k]
        if columns.stop == len(features):
            radii[rows] = best[:, k - 1]
    return Ball(features, radii)


def check_enough(count: int, k: int) -> None:
    """Refuse a number of vectors that have no k-th nearest other vector each.

    Raises:
      ValueError: if `count` is not above k, or k not above 0.
    """
    if not 1 <= k < count:
        raise Refused(
            f"k={k} nearest neighbours among {count} vectors, expected k >= 1 and more "
            "vectors than that; evaluate more samples."
        )


def count_inside(
    around: Ball, points: Float[np.ndarray, "m d"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
    """Count which points lie in which balls; the border belongs to the ball.

    Args:
      around: n balls.
      points: [m, d].

    Returns:
      ([m] in how many balls each point lies, [n] how many points lie in each ball).
    """
    of_points, of_balls = np.zeros(len(points), np.int64), np.zeros(len(around.centres), np.int64)
    centre = around.centres.mean(axis=0, dtype=np.float64)
    largest = max(_largest_norm(x, centre) for x in (points, around.centres))
    reach = around.radii + _TIE * largest
    for rows, columns, distances in distance_blocks(points, around.centres):
        inside = distances <= reach[columns]
        of_points[rows] += inside.sum(axis=1)
        of_balls[columns] += inside.sum(axis=0)
    return of_points, of_balls
