"""Which of several shapes each cycle of a run is of."""

import functools

import numpy as np

from dmd2_jax.typing import Int

__all__ = ["shape_of_cycle"]

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: its multiples fill a circle evenly


def shape_of_cycle(counts: tuple[int, ...], seed: int, cycle: int) -> tuple[int, int]:
    """Return the shape of a cycle, and how many cycles before it were of the same.

    Shapes come as often as they have examples, spread evenly: cycle i is of the shape in whose part
    of a circle the point seed + i / golden ratio lies. A function of the arguments alone, so that a
    resumed run goes on as one that was never stopped, and all processes agree.

    Args:
      counts: examples of each shape.
      seed: of the run.
      cycle: 0, 1, ...
    """
    if len(counts) == 1:
        return 0, cycle
    order = _order(counts, seed, 1 << int(cycle + 1).bit_length())
    return int(order[cycle]), int((order[:cycle] == order[cycle]).sum())


@functools.lru_cache(maxsize=4)
def _order(counts: tuple[int, ...], seed: int, length: int) -> Int[np.ndarray, " n"]:
    first = int(np.random.RandomState([seed, 2]).randint(2**32)) << 32
    points = np.uint64(first) + np.arange(length, dtype=np.uint64) * np.uint64(_GOLDEN)
    total, ends = sum(counts), np.cumsum(counts)
    borders = np.array([(int(end) << 64) // total for end in ends[:-1]], np.uint64)
    return np.searchsorted(borders, points, "right").astype(np.int8 if len(counts) < 128 else int)
