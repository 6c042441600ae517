"""Some of a source's classes: `config.data.classes`."""

from collections.abc import Mapping, Sequence

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.class_choice import chosen_classes
from dmd2_jax.data.reading.classes import Listing, listing_of_labels, listing_of_parts
from dmd2_jax.data.reading.contract import Batch, Source, SourceDefaults
from dmd2_jax.data.reading.files import Files
from dmd2_jax.runtime.distributed import say_once
from dmd2_jax.typing import Int

__all__ = ["SomeClasses"]

_KEY = "config.data.classes"
_BLOCK = 1024


class SomeClasses(SourceDefaults):
    """The examples of some classes, which count from 0 in the order of their numbers.

    Attributes:
      num_classes, class_names: of those chosen; where the source has no names, its numbers are.
      name, resolution, channels, corrupt: see `Source`.
    """

    def __init__(self, source: Source, words: Sequence[str | int]) -> None:
        """Choose classes of a source.

        Args:
          source: the whole.
          words: numbers and names of classes, in any order; see `chosen_classes`.

        Raises:
          Refused: if there is no such class, one is named twice, or none of its examples is there.
        """
        if not source.num_classes:
            raise Refused(
                f"{_KEY}={tuple(words)}, but {source.name} has prompts and no classes, expected "
                "(); leave it away."
            )
        chosen = chosen_classes(words, source.num_classes, source.class_names, key=_KEY)
        if len(set(chosen)) < len(chosen):
            raise Refused(
                f"{_KEY}={tuple(words)} names a class twice, expected each once; remove one."
            )
        numbers = sorted(chosen)
        names = source.class_names or tuple(map(str, range(source.num_classes)))
        self.class_names = tuple(names[number] for number in numbers)
        self.num_classes, self._source = len(numbers), source
        self.name = f"{source.name}, {len(numbers)} of {source.num_classes} classes"
        self.resolution, self.channels = source.resolution, source.channels
        # What a class of the source counts as here; -1: it is not chosen, or the label is damaged.
        self._ours = np.full(source.num_classes + 1, -1, np.int32)
        self._ours[numbers] = np.arange(len(numbers))
        labels = self._ours[_labels(source)]
        self._indices = np.flatnonzero(labels >= 0)
        self._labels = labels[self._indices]
        absent = np.setdiff1d(np.arange(len(numbers)), self._labels)
        if len(absent):
            raise Refused(
                f"{_KEY}: {source.name} has no example of class {self.class_names[absent[0]]!r}, "
                "expected one at least of each; leave it away."
            )

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def corrupt(self) -> Mapping[int, str]:  # type: ignore[override]
        """Of each example found undecodable so far: its number here -> what is wrong."""
        found = {int(i): what for i, what in self._source.corrupt.items()}
        return {n: found[i] for n, i in enumerate(self._indices.tolist()) if i in found}

    @property
    def listing(self) -> Listing | None:
        """The whole's, and which of its classes."""
        whole = self._source.listing
        if whole is None:
            return None
        counts = listing_of_labels(self._labels, self.num_classes).counts
        digest = listing_of_parts([whole.digest, *(self.class_names or ())]).digest
        return whole._replace(digest=digest, counts=counts)

    @property
    def files(self) -> Files | None:  # type: ignore[override]
        """The whole's."""
        return self._source.files

    def known_labels(self) -> Int[np.ndarray, " n"]:
        """Return every example's class."""
        return self._labels

    def describe(self, index: int) -> str:
        """Return the whole's name of an example."""
        return self._source.describe(int(self._indices[index]))

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the examples of these numbers, in this order."""
        batch = self._source.examples(self._indices[indices])
        labels = self._ours[batch["label"]]
        for k in np.flatnonzero(labels < 0):
            # A corrupt image, in whose place stands the whole's next one: of a class left out.
            image, labels[k] = self._following(int(indices[k]))
            batch["image"][k] = image
        return batch | {"label": labels}

    def _following(self, index: int) -> tuple[np.ndarray, int]:
        """Return the first sound example of a chosen class behind one, and its class."""
        for step in range(1, len(self)):
            batch = self._source.examples(self._indices[[(index + step) % len(self)]])
            if (label := int(self._ours[batch["label"][0]])) >= 0:
                return batch["image"][0], label
        raise Refused(f"{self.name}: no image can be decoded, expected some; replace the files.")


def _labels(source: Source) -> Int[np.ndarray, " n"]:
    """Return every example's class in the source, -1 where it is damaged."""
    if len(source) > _BLOCK:
        say_once(f"{source.name}: finding the chosen classes among {len(source):,} examples.")
    known = source.known_labels()
    if known is not None:
        return known
    blocks = range(0, len(source), _BLOCK)
    parts = [np.arange(begin, min(begin + _BLOCK, len(source))) for begin in blocks]
    return np.concatenate([source.examples(part)["label"] for part in parts])
