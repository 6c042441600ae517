"""Latents, and embeddings of prompts or classes, that `dmd2 cache` wrote: no network is needed.

An example is what a latent diffusion model reads: latent [h, w, c], already scaled, and its
condition: prompt_embeds [t, d] and, of SDXL, pooled [e] and time_ids [6], all float32; or a class.
A cache of prompts alone has no latents. `resolution` and `channels` are the latent's. Every file is
compared with its digest when the cache is opened. Without a test split `config.data.test_fraction`
is held out by a fixed seed. Needs the package array_record.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.contract import Batch, Options, SourceDefaults
from dmd2_jax.data.reading.dataset import split_indices
from dmd2_jax.data.reading.decode import CorruptImageError
from dmd2_jax.data.reading.records import ArrayRecords, Shard
from dmd2_jax.data.reading.sealed_shards import MANIFEST, Manifest, read_manifest, verify
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.typing import Int

NULL_FILE, LABELS_FILE = "null.safetensors", "labels.safetensors"


def load(
    path: str, split: str = "train", resolution: int = 64, options: Options | None = None
) -> "Latents":
    """Open a folder that `dmd2 cache` wrote.

    Args:
      path: the folder.
      split: "train", "test" or "all".
      resolution: unused; the latents' own is checked by the caller.
      options: test_fraction and workers count.

    Returns:
      The examples, read when they are asked for.

    Raises:
      MissingPackageError: if the package array_record is not installed.
      FileNotFoundError: if there is no finished cache.
      ValueError: if a file is not what the manifest seals.
    """
    options = options or Options()
    if not path:
        raise Refused(
            "config.data.path is empty, expected a folder that `dmd2 cache` wrote; set it."
        )
    folder = fetched(path).expanduser()
    manifest = read_manifest(folder)
    verify(folder, manifest, options.workers)
    count = sum(entry.records for entry in manifest.shards)
    labels = _read_labels(folder / LABELS_FILE, count) if LABELS_FILE in manifest.files else None
    classes = np.zeros(count, np.int32) if labels is None else labels
    chosen = split_indices(classes, split, options.test_fraction, f"latents {path}")
    return Latents(folder, manifest, chosen, labels)


class Latents(SourceDefaults):
    """A cache's examples; implements `Source`, with other arrays than image and label.

    Attributes:
      name, resolution, channels: see `Source`; of a latent.
      num_classes, class_names: see `Source`; of prompts none.
      has_images, text_encoders, identity: see `Source`.
      pixels: height and width of the images.
      manifest: what the cache says of itself.
      null: the condition of no prompt: prompt_embeds [1, t, d] and, of SDXL, pooled [1, e];
        without time_ids, which are the example's. None: of classes.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        indices: Int[np.ndarray, " n"] | None = None,
        labels: Int[np.ndarray, " m"] | None = None,
    ) -> None:
        """Open the shards, whose digests have been compared.

        Args:
          folder: of the cache.
          manifest: its manifest.
          indices: which examples; None: all.
          labels: the class of each record; None: they have prompts.

        Raises:
          ValueError: if the manifest lacks something, or a shard cannot be opened.
        """
        info = manifest.info
        try:
            self.name, self.pixels = f"latents {folder.name}", int(info["pixels"])
            self.resolution, self.channels = int(info["resolution"]), int(info["channels"])
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(
                f"{folder / MANIFEST} lacks pixels, resolution or channels ({error}), expected "
                "what `dmd2 cache` writes; write the cache again."
            ) from error
        self.manifest = manifest
        self.has_images = "latent" in manifest.layout.arrays
        self.text_encoders = tuple(manifest.plan.get("text_encoders", ()))
        self._labels = labels
        self.null = _read_null(folder / NULL_FILE) if labels is None else None
        self.num_classes, self.class_names = (0, None) if labels is None else _classes(info, labels)
        self._records = ArrayRecords(
            [
                Shard(str(folder / entry.file), 0, entry.records, entry.records)
                for entry in manifest.shards
                if entry.records
            ]
        )
        self._indices = np.arange(len(self._records)) if indices is None else indices
        digests = " ".join(entry.digest for entry in manifest.shards).encode()
        chosen = np.asarray(self._indices, "<i8").tobytes()
        self.identity = hashlib.sha256(digests + chosen).hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the examples of these numbers, in this order.

        Returns:
          latent [n, h, w, c] (of a cache with images), prompt_embeds [n, t, d] and, of SDXL,
          pooled [n, e] and time_ids [n, 6]; float32. Of classes latent and label [n] int32.

        Raises:
          ValueError: if a record is damaged, which happened after the cache was opened.
        """
        batch = self._read(indices)[0]
        if self._labels is None:
            return batch
        return batch | {"label": self._labels[self._indices[np.asarray(indices)]]}

    def known_labels(self) -> Int[np.ndarray, " n"] | None:
        """Return every example's class; None: they have prompts."""
        return None if self._labels is None else self._labels[self._indices]

    def captions(self, indices: Int[np.ndarray, " n"]) -> list[str]:
        """Return the prompts of these examples; of classes the names of their files."""
        return self._read(indices)[1]

    def _read(self, indices: Int[np.ndarray, " n"]) -> tuple[Batch, list[str]]:
        chosen = self._indices[np.asarray(indices)]
        try:
            return self.manifest.layout.unpack(self._records.read(chosen))
        except (CorruptImageError, ValueError) as error:
            raise Refused(
                f"{self.name}: {error}, expected sound records; copy the cache again."
            ) from error


def describe(source: Latents) -> str:
    """Return what a cache holds, as text: arrays, shards and the configuration that made it."""
    manifest = source.manifest
    size = sum(entry.bytes for entry in manifest.shards)
    records = sum(entry.records for entry in manifest.shards)
    lines = [
        f"{source.name}: {records:,} examples in {len(manifest.shards)} shards, {size / 1e6:,.1f} "
        "MB, every digest as sealed",
        *(f"  {k}: {dtype} {list(shape)}" for k, (shape, dtype) in manifest.layout.arrays.items()),
        "made of",
        *(f"  {key}: {value}" for key, value in manifest.plan.items()),
    ]
    left_out = [name for entry in manifest.shards for name in entry.left_out]
    return "\n".join([*lines, *(f"left out: {name}" for name in left_out)])


def _classes(
    info: Mapping[str, Any], labels: Int[np.ndarray, " n"]
) -> tuple[int, tuple[str, ...] | None]:
    """Return number and names of the classes that a manifest tells, if they are the labels'."""
    count, names = info.get("num_classes"), info.get("class_names")
    good = type(count) is int and len(labels) and labels.min() >= 0 and labels.max() < count
    if names is not None:
        good = good and isinstance(names, list) and len(names) == count
        good = good and all(isinstance(name, str) for name in names)
    if not good or not isinstance(count, int):
        raise Refused(
            f"{MANIFEST} tells {count!r} classes of other names or numbers than {LABELS_FILE}, "
            "expected what `dmd2 cache` writes; write the cache again."
        )
    return count, None if names is None else tuple(names)


def _read_null(file: Path) -> dict[str, np.ndarray]:
    return _read_arrays(file, "the embedding of no prompt")


def _read_labels(file: Path, count: int) -> Int[np.ndarray, " n"]:
    labels = _read_arrays(file, "the classes").get("label", np.zeros(0))
    if labels.shape != (count,) or labels.dtype != np.int32:
        raise Refused(
            f"{file} has labels of {labels.dtype} {labels.shape}, expected int32 ({count},), one "
            "for each record; write the cache again."
        )
    return labels


def _read_arrays(file: Path, what: str) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise Refused(
            f"{file} cannot be read ({error}), expected {what}; write the cache again."
        ) from error
