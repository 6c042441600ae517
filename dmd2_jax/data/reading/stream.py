"""Batches at any position of a shuffled stream, for any number of processes.

The stream of training examples is a pure function: the example at global position p is number
`p mod n` of epoch `p div n`, and an epoch's order is a function of (seed, epoch) alone. So a
batch is computed from the number of examples before it: resuming is exact without any iterator
state, every epoch shows every example exactly once whatever the batch size, and a global batch
is the same for any number of processes, of which each reads its own rows only.
"""

import functools
from collections.abc import Iterator

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.contract import Batch, Examples
from dmd2_jax.typing import Int

WHOLE = slice(None)
"""The rows of a process that reads the global batch alone."""


# One stream needs two epochs at most at a time (a batch may straddle the border), and there may
# be a second stream; an epoch of ImageNet takes 10 MB and 40 ms.
@functools.lru_cache(maxsize=4)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    # RandomState, not default_rng: its streams are frozen by NumPy's compatibility policy, so a
    # run can be repeated with another NumPy.
    order = np.random.RandomState([seed, epoch]).permutation(num_examples)
    order.setflags(write=False)
    return order


def example_indices(
    num_examples: int, *, start: int, count: int, seed: int
) -> Int[np.ndarray, " count"]:
    """Return which examples stand at `count` consecutive positions of the shuffled stream.

    The example at position p is order(seed, p div n)[p mod n].

    Args:
      num_examples: n, size of the data set.
      start: first position, >= 0: the number of examples consumed before.
      count: how many, >= 0; may exceed n.
      seed: 0 .. 2**32 - 1.

    Returns:
      [count] indices in 0..n-1.

    Raises:
      ValueError: if an argument is out of range.
    """
    if num_examples < 1 or start < 0 or count < 0 or not 0 <= seed < 2**32:
        raise Refused(
            f"num_examples={num_examples}, start={start}, count={count}, seed={seed}; expected "
            "num_examples >= 1, start >= 0, count >= 0 and a seed in 0..2**32-1; correct the one "
            "that is out of range."
        )
    positions = np.arange(start, start + count)
    epochs, offsets = np.divmod(positions, num_examples)
    indices = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _epoch_order(num_examples, seed, int(epoch))[offsets[here]]
    return indices


def process_rows(batch_size: int, process: int, processes: int) -> slice:
    """Return which rows of every global batch one process reads.

    Args:
      batch_size: b of the global batch.
      process: number of the process, 0 .. processes - 1; its devices hold these rows.
      processes: how many there are.

    Returns:
      Contiguous rows; those of all processes, in order, are the global batch.

    Raises:
      ValueError: if the batch does not split evenly.
    """
    if batch_size % processes or not 0 <= process < processes:
        raise Refused(
            f"batch_size={batch_size} for process {process} of {processes}, expected a multiple "
            f"of {processes} and a process below it; try {-(-batch_size // processes) * processes}."
        )
    rows = batch_size // processes
    return slice(process * rows, (process + 1) * rows)


def batches_from(
    source: Examples, start: int, count: int, *, batch_size: int, seed: int, rows: slice = WHOLE
) -> Batch:
    """Return `count` consecutive batches from a position of the shuffled stream, stacked.

    Args:
      source: the images.
      start: number of EXAMPLES before the first batch (the global example counter), >= 0.
      count: how many batches (the K of a cycle), >= 1.
      batch_size: b >= 1 of the global batch; may exceed the data set, which is then repeated,
        freshly shuffled.
      seed: 0 .. 2**32 - 1.
      rows: the rows of each batch to read; all by default. See `process_rows`.

    Returns:
      {"image": uint8 [count, b, h, w, c], "label": int32 [count, b]}, b rows or those asked for;
      a function of the arguments alone.

    Raises:
      ValueError: if an argument is out of range.
    """
    if batch_size < 1 or count < 1 or start < 0:
        raise Refused(
            f"batch_size={batch_size}, count={count}, start={start}; expected batch_size >= 1, "
            "count >= 1 and a first example or batch >= 0; correct the one that is out of range."
        )
    indices = example_indices(len(source), start=start, count=count * batch_size, seed=seed)
    indices = indices.reshape(count, batch_size)[:, rows]
    flat = source.examples(indices.reshape(-1))
    return {name: array.reshape(*indices.shape, *array.shape[1:]) for name, array in flat.items()}


def batches_at(source: Examples, first: int, count: int, *, batch_size: int, seed: int) -> Batch:
    """Return `count` consecutive batches of one size, the first being number `first`, stacked.

    Args:
      source: the images.
      first: number of the first batch, >= 0.
      count: how many batches (the K of a cycle), >= 1.
      batch_size: b >= 1.
      seed: 0 .. 2**32 - 1.

    Returns:
      {"image": uint8 [count, b, h, w, c], "label": int32 [count, b]}; batch i is a function of
      (source, seed, i, batch_size) alone.

    Raises:
      ValueError: if an argument is out of range.
    """
    return batches_from(source, first * batch_size, count, batch_size=batch_size, seed=seed)


def batch_at(source: Examples, index: int, *, batch_size: int, seed: int) -> Batch:
    """Return batch number `index` of the shuffled stream.

    Args:
      source: the images.
      index: number of the batch, >= 0.
      batch_size: b >= 1.
      seed: 0 .. 2**32 - 1.

    Returns:
      {"image": uint8 [b, h, w, c], "label": int32 [b]}.

    Raises:
      ValueError: if an argument is out of range.
    """
    stacked = batches_at(source, index, 1, batch_size=batch_size, seed=seed)
    return {name: array[0] for name, array in stacked.items()}


def batches(source: Examples, *, batch_size: int, seed: int, start: int = 0) -> Iterator[Batch]:
    """Yield the batches of the shuffled stream, without end.

    Args:
      source: the images.
      batch_size: b >= 1.
      seed: 0 .. 2**32 - 1.
      start: number of EXAMPLES consumed before, >= 0. To resume after `step` batches of this
        size pass `step * batch_size`; the counter stays right when the batch size or the number
        of workers changes in between.

    Yields:
      {"image": uint8 [b, h, w, c], "label": int32 [b]}.

    Raises:
      ValueError: if an argument is out of range; at the first batch.
    """
    while True:
        stacked = batches_from(source, start, 1, batch_size=batch_size, seed=seed)
        yield {name: array[0] for name, array in stacked.items()}
        start += batch_size
