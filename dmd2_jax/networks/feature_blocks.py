"""Which blocks of a transformer the GAN head looks at, and the runs of blocks between them."""

import itertools
from collections.abc import Sequence
from typing import Any

from dmd2_jax.config.refused import Refused

__all__ = ["block_runs", "chosen_blocks"]


def chosen_blocks(given: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return the numbers of the blocks whose outputs are features.

    Args:
      given: the numbers, from 0; (): that in the middle and that at three quarters of the depth.
      depth: number of blocks.

    Raises:
      Refused: if they are no increasing numbers of blocks.
    """
    blocks = tuple(given) or tuple(sorted({depth // 2, 3 * depth // 4}))
    rising = all(a < b for a, b in itertools.pairwise(blocks))
    if not all(type(b) is int and 0 <= b < depth for b in blocks) or not rising:
        raise Refused(
            f"model.feature_blocks={blocks}, expected increasing numbers from 0 to {depth - 1}; "
            f"try {tuple(sorted({depth // 2, 3 * depth // 4}))}, or () for these."
        )
    return blocks


def block_runs(kinds: Sequence[Any], ends: Sequence[int]) -> list[tuple[Any, tuple[int, ...]]]:
    """Split blocks into runs of neighbours of one kind, none of which goes beyond an end.

    Args:
      kinds: what each block is like.
      ends: numbers of blocks after which a run ends.

    Returns:
      (kind, numbers of the blocks) of each run.
    """
    runs: list[tuple[Any, tuple[int, ...]]] = []
    for number, kind in enumerate(kinds):
        if runs and runs[-1][0] == kind and number - 1 not in ends:
            runs[-1] = (kind, (*runs[-1][1], number))
        else:
            runs.append((kind, (number,)))
    return runs
