"""Labelled images in memory, and batches of them at any position of a shuffled stream.

The stream of training examples is a pure function: the example at global position p is number
`p mod n` of epoch `p div n`, and an epoch's order is a function of (seed, epoch) alone. So
batch i is computed from i, resuming is exact without any iterator state, and every epoch shows
every example exactly once, whatever the batch size.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from dmd2_jax.typing import Array, Float, Int, Shaped

Batch = dict[str, np.ndarray]
"""`image` uint8 [..., b, h, w, c] and `label` int32 [..., b]."""


@dataclass(frozen=True)
class ImageDataset:
    """Square images with class labels, checked when made.

    Attributes:
      images: [n, h, w, c] uint8, h == w, c is 1 or 3.
      labels: [n] int32, 0..num_classes-1.
      num_classes: how many classes there are, whether or not each occurs.
      name: the source, for messages and titles.

    Raises:
      ValueError: if there are no images, or an array's type, rank, size or a label's range is
        not as above.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    name: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8:
            raise ValueError(
                f"{self.name}: images have dtype {images.dtype}, expected uint8 in 0..255; "
                "convert them, for example by to_uint8."
            )
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                f"{self.name}: images have shape {images.shape}, expected [n, h, w, c] with "
                "1 or 3 channels last; transpose or add the missing axis."
            )
        if images.shape[1] != images.shape[2]:
            raise ValueError(
                f"{self.name}: images are {images.shape[1]} by {images.shape[2]}, expected "
                "squares; crop or pad them first."
            )
        if images.size == 0:
            raise ValueError(
                f"{self.name}: images have shape {images.shape}, expected at least one image "
                "of at least one pixel; check the path and the split."
            )
        if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{self.name}: labels are {labels.dtype} of shape {labels.shape}, expected int32 "
                f"of shape {images.shape[:1]}; give one class number an image."
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"{self.name}: labels lie in {low}..{high}, expected 0..{self.num_classes - 1}; "
                "renumber the classes or correct num_classes."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> int:
        """Height and width in pixels."""
        return self.images.shape[1]

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.images.shape[3]


def to_model(images: UInt8[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """Map bytes to the range that networks work in: x / 127.5 - 1.

    Args:
      images: uint8, 0..255.

    Returns:
      float32 in [-1, 1], same shape, on the device.
    """
    return jnp.asarray(images).astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array | np.ndarray, "..."]) -> UInt8[Array, "..."]:
    """Map network output to bytes: round((x + 1) 127.5), clipped to 0..255.

    Args:
      images: float, nominally in [-1, 1]; what lies outside is clipped.

    Returns:
      uint8, same shape, on the device. `to_uint8(to_model(x)) == x`.
    """
    scaled = (jnp.asarray(images).astype(jnp.float32) + 1.0) * 127.5
    return jnp.clip(jnp.round(scaled), 0.0, 255.0).astype(jnp.uint8)


def pad_to(dataset: ImageDataset, resolution: int) -> ImageDataset:
    """Surround every image with black until it is `resolution` pixels wide.

    Args:
      dataset: images of at most this size.
      resolution: pixels; an odd surplus puts the extra line below and to the right.

    Returns:
      A dataset of [n, resolution, resolution, c] images.

    Raises:
      ValueError: if the images are larger than `resolution`.
    """
    surplus = resolution - dataset.resolution
    if surplus < 0:
        raise ValueError(
            f"{dataset.name}: images are {dataset.resolution} pixels wide, expected at most "
            f"{resolution}; raise config.data.resolution (images are never shrunk silently)."
        )
    before, after = surplus // 2, surplus - surplus // 2
    width = ((0, 0), (before, after), (before, after), (0, 0))
    return replace(dataset, images=np.pad(dataset.images, width))


def check_split(split: str, splits: Iterable[str], name: str) -> None:
    """Refuse a split that is neither "all" nor one of `splits`.

    Args:
      split: what was asked for.
      splits: what there is.
      name: the source, for the message.

    Raises:
      ValueError: if there is no such split.
    """
    expected = [*splits, "all"]
    if split not in expected:
        raise ValueError(
            f"split={split!r} of {name}, expected one of {expected}; choose one of these."
        )


def select_split(
    splits: dict[str, tuple[np.ndarray, np.ndarray]], split: str, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Pick the images and labels of one split; "all" is every split, in the order given.

    Args:
      splits: split name -> (images [n, h, w, c], labels [n]).
      split: one of the names, or "all".
      name: the source, for the message.

    Returns:
      (images, labels).

    Raises:
      ValueError: if there is no such split.
    """
    check_split(split, splits, name)
    if split != "all":
        return splits[split]
    images, labels = zip(*splits.values(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


# Two epochs suffice for one stream (a batch may straddle the border); room for a few streams.
@functools.lru_cache(maxsize=16)
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
        raise ValueError(
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


def batches_at(
    dataset: ImageDataset, first: int, count: int, *, batch_size: int, seed: int
) -> Batch:
    """Return `count` consecutive batches of the shuffled stream, stacked.

    Args:
      dataset: the images.
      first: number of the first batch, >= 0.
      count: how many batches (the K of a cycle), >= 1.
      batch_size: b >= 1; may exceed the data set, which is then repeated, freshly shuffled.
      seed: 0 .. 2**32 - 1.

    Returns:
      {"image": uint8 [count, b, h, w, c], "label": int32 [count, b]}; batch i is a function of
      (dataset, seed, i, batch_size) alone.

    Raises:
      ValueError: if an argument is out of range.
    """
    if batch_size < 1 or count < 1 or first < 0:
        raise ValueError(
            f"batch_size={batch_size}, count={count}, first={first}; expected batch_size >= 1, "
            "count >= 1 and first >= 0; correct the one that is out of range."
        )
    indices = example_indices(
        len(dataset), start=first * batch_size, count=count * batch_size, seed=seed
    ).reshape(count, batch_size)
    return {"image": dataset.images[indices], "label": dataset.labels[indices]}


def batch_at(dataset: ImageDataset, index: int, *, batch_size: int, seed: int) -> Batch:
    """Return batch number `index` of the shuffled stream.

    Args:
      dataset: the images.
      index: number of the batch, >= 0.
      batch_size: b >= 1.
      seed: 0 .. 2**32 - 1.

    Returns:
      {"image": uint8 [b, h, w, c], "label": int32 [b]}.

    Raises:
      ValueError: if an argument is out of range.
    """
    stacked = batches_at(dataset, index, 1, batch_size=batch_size, seed=seed)
    return {name: array[0] for name, array in stacked.items()}


def batches(
    dataset: ImageDataset, *, batch_size: int, seed: int, start: int = 0
) -> Iterator[Batch]:
    """Yield the batches of the shuffled stream, without end.

    Args:
      dataset: the images.
      batch_size: b >= 1.
      seed: 0 .. 2**32 - 1.
      start: number of EXAMPLES consumed before (the global example counter), >= 0. To resume
        after `step` batches of this size pass `step * batch_size`; the counter stays right when
        the batch size or the number of workers changes in between.

    Yields:
      {"image": uint8 [b, h, w, c], "label": int32 [b]}.

    Raises:
      ValueError: if an argument is out of range; at the first batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected at least 1; raise it.")
    while True:
        indices = example_indices(len(dataset), start=start, count=batch_size, seed=seed)
        yield {"image": dataset.images[indices], "label": dataset.labels[indices]}
        start += batch_size


def class_counts(dataset: ImageDataset) -> Shaped[np.ndarray, " num_classes"]:
    """Count the images of each class.

    Args:
      dataset: the images.

    Returns:
      [num_classes] int64.
    """
    return np.bincount(dataset.labels, minlength=dataset.num_classes)
