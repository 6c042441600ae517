"""Data sources, one file each; a new file here is a new value of `config.data.name`.

A source is a module with

    load(path: str, split: str, resolution: int, options: Options) -> Source

where `split` is "train", "test" or "all", and whose docstring begins with the line that
`dmd2 data` shows of it. One that takes more than its name, as in `tfds:mnist`, says what in a
constant SPEC. It is imported only when it is asked for, so its reader's libraries are too.
"""

import difflib
import importlib
import pkgutil

from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.dataset import (
    Batch,
    ImageDataset,
    MissingPackageError,
    Options,
    Source,
    inputs_of,
    labels_of,
    to_memory,
    to_model,
    to_uint8,
)
from dmd2_jax.data.reading.stream import (
    batch_at,
    batches,
    batches_at,
    batches_from,
    example_indices,
    process_rows,
)

__all__ = [
    "Batch",
    "ImageDataset",
    "MissingPackageError",
    "Options",
    "Source",
    "available",
    "batch_at",
    "batches",
    "batches_at",
    "batches_from",
    "example_indices",
    "inputs_of",
    "labels_of",
    "load",
    "process_rows",
    "summaries",
    "to_memory",
    "to_model",
    "to_uint8",
]


# captions and prompts are what `dmd2 cache` reads: texts, of which networks know nothing
def available() -> list[str]:
    """List the names that `config.data.name` may have, in alphabetical order."""
    modules = (module for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return sorted(module.name for module in modules)


def summaries() -> dict[str, str]:
    """Return what each source is, in a line: its name as it is written -> its summary."""
    found = {}
    for name in available():
        source = importlib.import_module(f"{__name__}.{name}")
        spec = getattr(source, "SPEC", "")
        found[f"{name}:{spec}" if spec else name] = source.__doc__.splitlines()[0]
    return found


def load(data_config: ConfigDict, split: str, resolution: int) -> Source:
    """Load one split of the data that a config names.

    Args:
      data_config: `config.data`: name (a file of this folder, and its spec after a colon), path
        (where the files lie, for sources that read files) and, by the defaults of `Options` where
        they are missing, test_fraction, max_corrupt and workers.
      split: "train", "test" or "all".
      resolution: a side of the images in pixels, of `config.model`; sources pad to it or refuse,
        none resizes.

    Returns:
      The images and labels.

    Raises:
      ValueError: if there is no such source or split, or the images do not have the resolution.
      FileNotFoundError: if files are missing.
      MissingPackageError: if the source needs a package that is not installed.
    """
    names = available()
    name, colon, spec = data_config.name.partition(":")
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "choose one of these."
        raise Refused(f"config.data.name={name!r}, expected one of {names}; {hint}")
    source = importlib.import_module(f"{__name__}.{name}")
    if colon and not hasattr(source, "SPEC"):
        raise Refused(
            f"config.data.name={data_config.name!r}, expected {name!r}, which takes nothing after "
            "a colon; leave it away."
        )
    keys = ("test_fraction", "max_corrupt", "workers")
    options = Options(spec, **{key: data_config[key] for key in keys if key in data_config})
    dataset = source.load(data_config.path, split, resolution, options)
    if dataset.resolution != resolution:
        raise Refused(
            f"{dataset.name}: images are {dataset.resolution} pixels wide, expected "
            f"config.model.resolution={resolution}; set it to {dataset.resolution}."
        )
    return dataset
