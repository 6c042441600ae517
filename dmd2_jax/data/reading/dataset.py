"""The source that lies in memory, splits, and what every source needs."""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, Sizes, say_sizes, sides, size_of
from dmd2_jax.data.reading.classes import Listing, listing_of_labels, listing_of_parts
from dmd2_jax.data.reading.contract import Batch, NoSplitError, Source, SourceDefaults
from dmd2_jax.data.reading.files import Files
from dmd2_jax.runtime.seal import digest
from dmd2_jax.typing import Array, Float, Int, PyTree, Shaped

CONDITION = ("prompt_embeds", "pooled", "prompt_mask", "time_ids")
"""What the condition of a text-to-image model may consist of."""

MEMORY_LIMIT = 8 * 2**30
"""Bytes that a source may take when it is read into memory whole."""

SPLIT_SEED = 20240523  # fixed: a split is part of the data set, not of a run


@dataclass(frozen=True)
class ImageDataset(SourceDefaults):
    """Square images with class labels, checked when made.

    Attributes:
      images: [n, h, w, c] uint8, h == w, c is 1 or 3.
      labels: [n] int32, 0..num_classes-1.
      num_classes: how many classes there are, whether or not each occurs.
      name: the source, for messages and titles.
      class_names: the name of each class in the order of the numbers; None: they have none.

    Raises:
      ValueError: if there are no images, or an array's type, rank, size or a label's range is
        not as above.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    name: str
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8:
            raise Refused(
                f"{self.name}: images have dtype {images.dtype}, expected uint8 in 0..255; "
                "convert them, for example by to_uint8."
            )
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise Refused(
                f"{self.name}: images have shape {images.shape}, expected [n, h, w, c] with "
                "1 or 3 channels last; transpose or add the missing axis."
            )
        if images.size == 0:
            raise Refused(
                f"{self.name}: images have shape {images.shape}, expected at least one image "
                "of at least one pixel; check the path and the split."
            )
        if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            raise Refused(
                f"{self.name}: labels are {labels.dtype} of shape {labels.shape}, expected int32 "
                f"of shape {images.shape[:1]}; give one class number an image."
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise Refused(
                f"{self.name}: labels lie in {low}..{high}, expected 0..{self.num_classes - 1}; "
                "renumber the classes or correct num_classes."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> Size:
        """Height and width in pixels."""
        return size_of(*self.images.shape[1:3])

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.images.shape[3]

    @functools.cached_property
    def listing(self) -> Listing:
        """The classes in their order, and the pixels where they are in memory."""
        listing = listing_of_labels(self.labels, self.num_classes)
        if isinstance(self.images, np.memmap):  # which may be of any size
            return listing
        return listing._replace(contents=digest(np.ascontiguousarray(self.images).data))

    def known_labels(self) -> Int[np.ndarray, " n"]:
        """Return the labels."""
        return self.labels

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the examples of these numbers, in this order."""
        # asarray: memory-mapped images are read here, not when the batch is used.
        return {"image": np.asarray(self.images[indices]), "label": self.labels[indices]}


@dataclass(frozen=True)
class Subset(SourceDefaults):
    """Some examples of a source, in an order of their own.

    Attributes:
      source: the whole.
      indices: [n] int64, which of its examples.
    """

    source: Source
    indices: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def name(self) -> str:
        """The whole's."""
        return self.source.name

    @property
    def resolution(self) -> Sizes:
        """Height and width in pixels."""
        return self.source.resolution

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.source.channels

    @property
    def num_classes(self) -> int:
        """The whole's."""
        return self.source.num_classes

    @property
    def listing(self) -> Listing | None:
        """The whole's, and which of its examples."""
        whole = self.source.listing
        chosen = np.asarray(self.indices, "<i8").tobytes().hex()
        if whole is None:
            return None
        return whole._replace(digest=listing_of_parts([whole.digest, chosen]).digest, counts=())

    @property
    def files(self) -> Files | None:  # type: ignore[override]
        """The whole's."""
        return self.source.files

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the examples of these numbers, in this order."""
        return self.source.examples(self.indices[indices])

    def describe(self, index: int) -> str:
        """Return the whole's name of an example."""
        return self.source.describe(int(self.indices[index]))


def to_memory(source: Source, limit: int = MEMORY_LIMIT) -> ImageDataset:
    """Read a source into memory whole.

    Args:
      source: the images; one that lies in memory is returned as it is.
      limit: bytes that the images may take.

    Returns:
      The same examples, in order.

    Raises:
      ValueError: if the images would take more.
    """
    if isinstance(source, ImageDataset):
        return source
    size = len(source) * math.prod(sides(source.resolution)) * source.channels
    if size > limit:
        raise Refused(
            f"{source.name}: {len(source):,} images take {size / 2**30:,.1f} GiB of memory, "
            f"expected at most {limit / 2**30:,.1f} GiB where they are needed all at once; use a "
            "smaller data set or split."
        )
    parts = [
        source.examples(np.arange(begin, min(begin + 1024, len(source))))
        for begin in range(0, len(source), 1024)
    ]
    images, labels = (np.concatenate([part[key] for part in parts]) for key in ("image", "label"))
    return ImageDataset(images, labels, source.num_classes, source.name, source.class_names)


def inputs_of(batch: Batch) -> np.ndarray | None:
    """Return what of a batch becomes x_0: bytes of images, or latents; None: prompts alone."""
    return batch.get("image", batch.get("latent"))


def labels_of(batch: Batch) -> PyTree:
    """Return what of a batch becomes the condition: class numbers, or the arrays of prompts."""
    if "label" in batch:
        return batch["label"]
    return {name: batch[name] for name in CONDITION if name in batch}


def to_model(images: UInt8[Array | np.ndarray, "..."]) -> Float[Array, "..."]:
    """Map bytes to the range that networks work in: x / 127.5 - 1.

    Args:
      images: uint8, 0..255; or latents, which are float and stay as they are.

    Returns:
      float32 in [-1, 1] (of bytes), same shape, on the device.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return jnp.asarray(images, jnp.float32)
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


def pad_to(dataset: ImageDataset, resolution: Size) -> ImageDataset:
    """Surround every image with black until it is of a size.

    Args:
      dataset: images of at most this size.
      resolution: the size; an odd surplus puts the extra line below and to the right.

    Returns:
      A dataset of images of that size.

    Raises:
      ValueError: if the images are larger than `resolution`.
    """
    own, asked = sides(dataset.resolution), sides(resolution)
    if own[0] > asked[0] or own[1] > asked[1]:
        raise Refused(
            f"{dataset.name}: images are {say_sizes(dataset.resolution)} pixels wide, expected at "
            f"most {say_sizes(resolution)}; raise config.model.resolution (images are never shrunk "
            "silently), or let them be resized by `config.data.resize=crop`."
        )
    surplus = (a - b for a, b in zip(asked, own, strict=True))
    width = ((0, 0), *((n // 2, n - n // 2) for n in surplus), (0, 0))
    return replace(dataset, images=np.pad(dataset.images, width))


def check_split(split: str, splits: Iterable[str], name: str) -> None:
    """Refuse a split that is neither "all" nor one of `splits`.

    Args:
      split: what was asked for.
      splits: what there is.
      name: the source, for the message.

    Raises:
      NoSplitError: if there is no such split.
    """
    expected = [*splits, "all"]
    if split not in expected:
        raise NoSplitError(
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


def held_out(labels: Int[np.ndarray, " n"], fraction: float) -> Bool[np.ndarray, " n"]:
    """Mark the test images of data without a test split: the same share of every class.

    Args:
      labels: [n] classes.
      fraction: 0..1 of every class, rounded to whole images.

    Returns:
      [n], true for test; a function of the labels and the fraction alone.
    """
    random = np.random.RandomState(SPLIT_SEED)
    mask = np.zeros(len(labels), bool)
    by_class = np.argsort(labels, kind="stable")
    borders = np.flatnonzero(np.diff(labels[by_class])) + 1
    for members in np.split(by_class, borders):
        mask[random.permutation(members)[: round(fraction * len(members))]] = True
    return mask


def check_holds_out(split: str, fraction: float, name: str) -> None:
    """Refuse the test split of data that have none, where none is held out.

    Args:
      split: what was asked for.
      fraction: `config.data.test_fraction`.
      name: the source, for the message.

    Raises:
      NoSplitError: if it is "test" and the fraction 0.
    """
    if split == "test" and fraction == 0:
        raise NoSplitError(
            f"{name} has no test split and config.data.test_fraction=0 holds none out, expected "
            "test images where they are asked for (as by the classifier of `dmd2 evaluate`); set "
            "it to 0.1, or measure by the features of inception."
        )


def split_indices(
    labels: Int[np.ndarray, " n"], split: str, fraction: float, name: str
) -> Int[np.ndarray, " m"]:
    """Return which examples of data without a test split belong to a split.

    Args:
      labels: [n] classes.
      split: "train", "test" or "all".
      fraction: see `held_out`.
      name: the source, for the message.

    Raises:
      NoSplitError: if there is no such split.
      ValueError: if there is no image in it.
    """
    check_split(split, ("train", "test"), name)
    if split == "all":
        return np.arange(len(labels))
    check_holds_out(split, fraction, name)
    mask = held_out(labels, fraction)
    chosen = np.flatnonzero(mask if split == "test" else ~mask)
    if len(chosen) == 0:
        raise Refused(
            f"{name}: config.data.test_fraction={fraction} of each class of {len(labels)} images "
            f"leaves none for {split}, expected at least one; set config.data.test_fraction="
            f"{'0 to hold none out, or give classes several images' if split == 'test' else '0.1'}."
        )
    return chosen


def class_counts(dataset: ImageDataset) -> Shaped[np.ndarray, " num_classes"]:
    """Count the images of each class.

    Args:
      dataset: the images.

    Returns:
      [num_classes] int64.
    """
    return np.bincount(dataset.labels, minlength=dataset.num_classes)
