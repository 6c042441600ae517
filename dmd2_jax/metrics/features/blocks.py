"""Samples dealt into blocks, and how far a figure of all of them would vary: the jackknife.

A figure of n samples is computed m more times, each time without one of m blocks of them. How much
these m figures differ says how much the figure would differ between evaluations with other samples:

    std^2 = (m - 1) / m sum_j (figure without block j - their mean)^2

It takes smooth figures that are no means over samples, as FID is.

Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 11; blocks here
stand for its single samples.
"""

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from dmd2_jax.metrics.features.moments import FeatureStatistics
from dmd2_jax.typing import Float, Int

__all__ = ["BLOCKS", "BlockStatistics", "Dealer", "jackknife_std", "left_out"]

BLOCKS = 10
"""m: nine degrees of freedom, for ten more figures."""

_AT_ONCE = 2048  # vectors: a product of matrices this size is worth its overhead


class Dealer:
    """Deals samples into blocks as they come, one of every m in a row to each.

    Which one goes where is drawn, and depends on the samples' numbers alone. Samples that come
    sorted by class are so in each block as they are in all; of classes in turn no block has
    one alone.
    """

    def __init__(self, blocks: int = BLOCKS, seed: int = 0) -> None:
        """Begin with sample 0.

        Args:
          blocks: m.
          seed: of the draws.
        """
        self._blocks, self._random = blocks, np.random.RandomState(seed)
        self._left = np.empty(0, np.int64)

    def __call__(self, count: int) -> Int[np.ndarray, " count"]:
        """Return the blocks of the next `count` samples, 0 .. m - 1 each."""
        rows = max(0, math.ceil((count - len(self._left)) / self._blocks))
        drawn = self._random.random_sample((rows, self._blocks)).argsort(axis=1)
        dealt = np.concatenate([self._left, drawn.ravel()])
        self._left = dealt[count:]
        return dealt[:count]


class BlockStatistics:
    """Statistics of vectors that arrive in parts of any size: of all of them, and of blocks."""

    def __init__(self, dimension: int, blocks: int = BLOCKS) -> None:
        """Begin with no vectors.

        Args:
          dimension: d.
          blocks: m; 1: none, all vectors together.
        """
        self._deal = Dealer(blocks)
        self._done = [FeatureStatistics.empty(dimension) for _ in range(blocks)]
        self._pending: list[list[np.ndarray]] = [[] for _ in range(blocks)]

    def add(self, features: Float[np.ndarray, "n d"]) -> None:
        """Take vectors.

        Args:
          features: [n, d], the next ones.

        Raises:
          ValueError: see `FeatureStatistics.update`; also later, as vectors wait for others.
        """
        dealt = self._deal(len(features))
        for block, pending in enumerate(self._pending):
            pending.append(features[dealt == block])
            if sum(len(part) for part in pending) >= _AT_ONCE:
                self._flush(block)

    def result(self) -> tuple[FeatureStatistics, tuple[FeatureStatistics, ...] | None]:
        """Return the statistics of all vectors so far, and those of the blocks (None of one)."""
        for block in range(len(self._done)):
            self._flush(block)
        blocks = tuple(self._done) if len(self._done) > 1 else None
        return functools.reduce(FeatureStatistics.merge, self._done), blocks

    def _flush(self, block: int) -> None:
        if self._pending[block]:
            vectors = np.concatenate(self._pending[block])
            self._done[block] = self._done[block].update(vectors)
            self._pending[block] = []


def left_out(blocks: Sequence[FeatureStatistics]) -> Iterator[FeatureStatistics]:
    """Go through the statistics of all samples but those of one block.

    Args:
      blocks: m >= 2 statistics, of one vector or more each.

    Yields:
      m statistics.
    """
    whole = functools.reduce(FeatureStatistics.merge, blocks)
    for block in blocks:
        yield whole.without(block)


def jackknife_std(figures: Sequence[float]) -> float:
    """Return the deviation of a figure between evaluations, from its values without one block each.

    Args:
      figures: m >= 2, of blocks of equal size.
    """
    # The squares' mean times m - 1 is their sum times (m - 1) / m.
    return float(np.std(figures) * math.sqrt(len(figures) - 1))
