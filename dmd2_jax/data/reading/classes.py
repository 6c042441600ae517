"""Names of classes: the order that numbers them, and a digest of the examples that were listed."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dmd2_jax.typing import Int

__all__ = [
    "Listing",
    "are_synsets",
    "are_whole_numbers",
    "in_order",
    "listing_of_files",
    "listing_of_labels",
    "listing_of_parts",
    "shown",
]


class Listing(NamedTuple):
    """What a source lists, without reading an image.

    Attributes:
      digest: changes with the names of the examples, their classes and their order.
      counts: examples of each class; (): not known before they are read.
      sizes: changes with the sizes of the files; "": not known.
      contents: changes with any byte of the files, or any pixel in memory; "": not known.
    """

    digest: str
    counts: tuple[int, ...] = ()
    sizes: str = ""
    contents: str = ""


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of classes in the order that numbers them: whole numbers by value."""
    found = sorted(set(names))
    return sorted(found, key=int) if are_whole_numbers(found) else found


def are_whole_numbers(names: Sequence[str]) -> bool:
    """Return whether all names are whole numbers, "0", "1", ... "10"."""
    return all(name.isascii() and name.isdecimal() for name in names)


def are_synsets(names: Sequence[str]) -> bool:
    """Return whether all names are synsets of WordNet as ImageNet has them, "n02119789"."""
    return bool(names) and all(re.fullmatch(r"n\d{8}", name) for name in names)


def shown(name: str, most: int = 60) -> str:
    """Return a name of a class for people: cut, and without what no terminal should be sent."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in name)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def listing_of_files(files: Iterable[tuple[str, int]], num_classes: int) -> Listing:
    """Make the listing of files.

    Args:
      files: name and class of each, in order.
      num_classes: how many classes there are.
    """
    pairs = list(files)
    text = "\n".join(f"{label} {name}" for name, label in pairs)
    labels = np.array([label for _, label in pairs], np.int64)
    return Listing(_digest(text.encode("utf-8", "surrogateescape")), _counts(labels, num_classes))


def listing_of_labels(labels: Int[np.ndarray, " n"], num_classes: int) -> Listing:
    """Make the listing of examples that have no names."""
    return Listing(_digest(labels.astype("<i8").tobytes()), _counts(labels, num_classes))


def listing_of_parts(parts: Iterable[object]) -> Listing:
    """Make the listing of files of many examples, from anything with a text that says which."""
    return Listing(_digest("\n".join(map(str, parts)).encode("utf-8", "surrogateescape")))


def _counts(labels: Int[np.ndarray, " n"], num_classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(labels, minlength=num_classes).tolist())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
