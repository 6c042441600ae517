"""Sources of training examples, a file each: a new file is a new value of `config.data.name`."""

from dmd2_jax.data.reading.contract import (
    Batch,
    MissingPackageError,
    NoSplitError,
    Options,
    Source,
    SourceDefaults,
)
from dmd2_jax.data.reading.dataset import (
    ImageDataset,
    inputs_of,
    labels_of,
    split_indices,
    to_memory,
    to_model,
    to_uint8,
)
from dmd2_jax.data.reading.open import available, is_known, load, summaries
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
    "NoSplitError",
    "Options",
    "Source",
    "SourceDefaults",
    "available",
    "batch_at",
    "batches",
    "batches_at",
    "batches_from",
    "example_indices",
    "inputs_of",
    "is_known",
    "labels_of",
    "load",
    "process_rows",
    "split_indices",
    "summaries",
    "to_memory",
    "to_model",
    "to_uint8",
]
