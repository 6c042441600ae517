"""What data are: of which source, how many, how large, of which colours and classes."""

import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dmd2_jax import data
from dmd2_jax.config import defaults
from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.data import Source
from dmd2_jax.data.reading.classes import shown
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.typing import Int

__all__ = ["SMALLEST", "Facts", "look"]

SMALLEST = 8
"""Pixels; below that there is nothing to learn, and no network of two levels."""

_SIZES, _READ = 512, 256  # images whose size is looked at, and that are decoded
_FEWEST = 10
_FEW = 1000
_FEW_OF_A_CLASS = 5  # of which a tenth is no image


class Facts(NamedTuple):
    """What was found.

    Attributes:
      source: `config.data.name`.
      path: `config.data.path`.
      name: of the data, for people.
      images: how many.
      sizes: [n, 2] height and width of some of them, spread over all.
      channels: 1 or 3.
      num_classes: how many classes there are.
      class_names: their names; None: they have none.
      notes: what the user should know, a sentence each.
    """

    source: str
    path: str
    name: str
    images: int
    sizes: Int[np.ndarray, "n 2"]
    channels: int
    num_classes: int
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]


def look(path: str, name: str = "") -> Facts:
    """Open data, whatever they are, and look at some of them.

    Args:
      path: of the files; "" for a source that reads none.
      name: `config.data.name`; "": as the files say.

    Raises:
      FileNotFoundError: if there is nothing.
      MissingPackageError: if the source needs a package that is not installed.
      Refused: if they are no images, too few or too small, or one is refused by its source.
    """
    if not path and not name:
        raise Refused("neither `data=` nor `source=` is given, expected one; add `data=FOLDER`.")
    name = name or _source_of(path)
    try:
        return _facts(_open(name, path), name, path)
    except Missing as error:
        raise Missing(_own_words(error)) from error
    except Refused as error:
        raise type(error)(_own_words(error)) from error


def _own_words(error: Exception) -> str:
    """Return a source's message in the words of this command, which has no config yet."""
    return str(error).replace("config.data.path", "--data").replace("config.data.name", "--source")


def _source_of(path: str) -> str:
    """Return the source that reads such files."""
    root = fetched(path).expanduser()
    if not root.exists():
        raise Missing(
            f"`data={path}` does not exist, expected a folder or file of images; mind the working "
            "directory."
        )
    if root.is_file():
        return "arrays" if root.suffix.lower() in (".npz", ".npy") else "image_folder"
    files = {file.name.lower() for file in root.iterdir() if file.is_file()}
    if "info.json" in files and any(file.endswith(".array_record") for file in files):
        return "array_record"
    if "dataset_info.json" in files:
        raise Refused(
            f"`data={path}` is a data set that TFDS prepared, expected its data_dir and the name: "
            "give `source=tfds:NAME` and `data=DATA_DIR`, the folder that holds NAME."
        )
    if "manifest.json" in files:
        raise Refused(
            f"`data={path}` is a cache of latents that `dmd2 cache` wrote, expected images; for "
            "text to image begin with configs/sd15.py or configs/sdxl_four_step.py."
        )
    if any(file.endswith(".npy") for file in files) or "train.npz" in files:
        return "arrays"
    if any("-ubyte" in file and "idx" in file for file in files):
        return "idx"
    return "image_folder"


def _open(name: str, path: str) -> Source:
    """Open all images, made so small that any size will do."""
    config = defaults.get_config().data
    config.name, config.path = name, path
    config.resize, config.max_corrupt = "enlarge", sys.maxsize
    return data.load(config, "all", SMALLEST)


def _facts(source: Source, name: str, path: str) -> Facts:
    if source.null is not None:
        raise Refused(f"{source.name} holds latents, expected images; see docs/text_to_image.md.")
    count = len(source)
    if count < _FEWEST:
        raise Refused(
            f"{source.name} has {count} image{'s' * (count > 1)}, expected at least {_FEWEST}, and "
            f"better {_FEW:,} or more: a model of so few repeats them; add images."
        )
    chosen = _spread(count, _SIZES)
    sizes = source.sizes(chosen)
    if sizes is None:
        sizes = np.full((1, 2), source.resolution)
    source.examples(_spread(count, _READ))  # whether they can be decoded, and their colours
    sound = sizes[sizes.min(axis=1) > 0]
    return Facts(
        name,
        path,
        source.name,
        count,
        sound,
        source.channels,
        source.num_classes,
        source.class_names,
        tuple(_notes(source, count, len(chosen))),
    )


def _spread(count: int, most: int) -> Int[np.ndarray, " n"]:
    """Return numbers of some examples, at equal distances."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _notes(source: Source, count: int, looked_at: int) -> Iterator[str]:
    if source.corrupt:
        first = next(iter(source.corrupt.values()))
        yield (
            f"{len(source.corrupt)} of {looked_at} images looked at cannot be decoded, such as "
            f"{first}; `dmd2 data` lists them all."
        )
    if looked_at < count:
        yield (
            f"{looked_at:,} of {count:,} images were looked at; `dmd2 data` reads all of them, and "
            "names what a training would stop at."
        )
    if count < _FEW:
        yield (
            f"{count} images are few: the networks will learn them by heart. {_FEW:,} are a start."
        )
    counts = source.listing.counts if source.listing is not None else ()
    few = [i for i, n in enumerate(counts) if n < _FEW_OF_A_CLASS]
    if few and source.num_classes > 1:
        names = source.class_names or tuple(map(str, range(source.num_classes)))
        said = ", ".join(f"{shown(names[i])} ({counts[i]})" for i in few[:5])
        yield f"{len(few)} classes have fewer than {_FEW_OF_A_CLASS} images: {said}."
