"""Data sources, one file each; a new file here is a new value of `config.data.name`.

A source is a module with

    load(path: str, split: str, resolution: int) -> ImageDataset

where `split` is "train", "test" or "all". It is imported only when it is asked for, so its
reader's libraries are too.
"""

import difflib
import importlib
import pkgutil

from ml_collections import ConfigDict

from dmd2_jax.data.dataset import (
    Batch,
    ImageDataset,
    batch_at,
    batches,
    batches_at,
    example_indices,
    to_model,
    to_uint8,
)

__all__ = [
    "Batch",
    "ImageDataset",
    "available",
    "batch_at",
    "batches",
    "batches_at",
    "example_indices",
    "load",
    "to_model",
    "to_uint8",
]

_NOT_SOURCES = frozenset({"dataset"})


def available() -> list[str]:
    """List the names that `config.data.name` may have, in alphabetical order."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if name not in _NOT_SOURCES)


def load(data_config: ConfigDict, split: str) -> ImageDataset:
    """Load one split of the data that a config names.

    Args:
      data_config: `config.data`: name (a file of this folder), path (where the files lie, for
        sources that read files), resolution (pixels; sources pad to it or refuse, none resizes).
      split: "train", "test" or "all".

    Returns:
      The checked images and labels.

    Raises:
      ValueError: if there is no such source or split, or the images do not have the resolution.
      FileNotFoundError: if files are missing.
    """
    names = available()
    if data_config.name not in names:
        nearest = difflib.get_close_matches(data_config.name, names, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "choose one of these."
        raise ValueError(f"config.data.name={data_config.name!r}, expected one of {names}; {hint}")
    source = importlib.import_module(f"{__name__}.{data_config.name}")
    dataset = source.load(data_config.path, split, data_config.resolution)
    if dataset.resolution != data_config.resolution:
        raise ValueError(
            f"{dataset.name}: images are {dataset.resolution} pixels wide, expected "
            f"config.data.resolution={data_config.resolution}; set it to {dataset.resolution}."
        )
    return dataset
