"""Latents, and embeddings of prompts or classes, that `dmd2 cache` wrote: no network is needed.

An example is what a latent diffusion model reads: latent [h, w, c], already scaled, and its
condition: prompt_embeds [t, d] and the other parts that its network takes, such as pooled [e],
prompt_mask [t] and SDXL's time_ids [6], all float32; or a class.
A cache of prompts alone has no latents. `resolution` and `channels` are the latent's. Every file is
compared with its digest when the cache is opened. Without a test split `config.data.test_fraction`
is held out by a fixed seed. Needs the package array_record.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, Sizes, say_sizes, sides, size_of, sizes_of
from dmd2_jax.data.reading.contract import Batch, Options, SourceDefaults
from dmd2_jax.data.reading.dataset import split_indices
from dmd2_jax.data.reading.decode import CorruptImageError
from dmd2_jax.data.reading.records import ArrayRecords, Shard
from dmd2_jax.data.reading.sealed_shards import (
    MANIFEST,
    Entry,
    Layout,
    Manifest,
    read_manifest,
    verify,
)
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.typing import Int

NULL_FILE, LABELS_FILE = "null.safetensors", "labels.safetensors"
_TIME_IDS = "time_ids"


def load(
    path: str, split: str = "train", resolution: Sizes = 64, options: Options | None = None
) -> "Latents":
    """Open a folder that `dmd2 cache` wrote.

    Args:
      path: the folder.
      split: "train", "test" or "all".
      resolution: the shapes of latents that are wanted; the caller checks what is there.
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
    return Latents(folder, manifest, chosen, labels, resolution)


class _Part(NamedTuple):
    """The examples of one shape.

    Attributes:
      size: of the latents.
      pixels: of the images.
      layout: of a record.
      records: in the shards of the shape.
      chosen: which of the records are the examples.
    """

    size: Size
    pixels: Size
    layout: Layout
    records: ArrayRecords
    chosen: Int[np.ndarray, " n"]


class Latents(SourceDefaults):
    """A cache's examples; implements `Source`, with other arrays than image and label.

    Attributes:
      name, resolution, channels: see `Source`; of a latent.
      num_classes, class_names: see `Source`; of prompts none.
      buckets, has_images, text_encoders, identity: see `Source`.
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
        resolution: Sizes = 0,
    ) -> None:
        """Open the shards, whose digests have been compared.

        Args:
          folder: of the cache.
          manifest: its manifest.
          indices: which examples; None: all.
          labels: the class of each record, which are then of one shape; None: they have prompts.
          resolution: the shapes of latents that are wanted; 0, or one that the cache has not: all
            that it has. Prompts alone are of any.

        Raises:
          ValueError: if the manifest lacks something, or a shard cannot be opened.
        """
        self.name, self.manifest = f"latents {folder.name}", manifest
        self.has_images = "latent" in manifest.layout.arrays
        self.text_encoders = tuple(manifest.plan.get("text_encoders", ()))
        self._labels = labels
        self.null = _read_null(folder / NULL_FILE) if labels is None else None
        self.num_classes, self.class_names = (
            (0, None) if labels is None else _classes(manifest.info, labels)
        )
        count = sum(entry.records for entry in manifest.shards)
        chosen = np.arange(count) if indices is None else np.asarray(indices)
        shapes = _shapes(manifest, folder / MANIFEST)
        self.channels = int(manifest.info["channels"])
        parts = _parts(folder, manifest, shapes, chosen)
        wanted = sizes_of(resolution) if resolution else ()
        if wanted and not self.has_images:
            parts = [_asked_at(parts[0], size) for size in wanted]
        elif wanted and set(wanted) <= {part.size for part in parts}:
            by_size = {part.size: part for part in parts}
            parts = [by_size[size] for size in wanted]
        pairs = tuple(sides(part.size) for part in parts)
        self.resolution: Sizes = parts[0].size if len(parts) == 1 else pairs
        self._parts = parts if self.has_images else parts[:1]
        digests = " ".join(entry.digest for entry in manifest.shards).encode()
        self.identity = hashlib.sha256(digests + chosen.astype("<i8").tobytes()).hexdigest()
        if len(parts) > 1:
            self.buckets = {
                part.size: Latents(folder, manifest, indices, None, part.size) for part in parts
            }

    def __len__(self) -> int:
        return sum(len(part.chosen) for part in self._parts)

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the examples of these numbers, in this order.

        Returns:
          latent [n, h, w, c] (of a cache with images), prompt_embeds [n, t, d] and, of SDXL,
          pooled [n, e] and time_ids [n, 6]; float32. Of classes latent and label [n] int32.

        Raises:
          ValueError: if a record is damaged, which happened after the cache was opened; or if the
            examples have several shapes, see `buckets`.
        """
        batch = self._read(indices)[0]
        if self._labels is None:
            return batch
        return batch | {"label": self._labels[self._parts[0].chosen[np.asarray(indices)]]}

    def known_labels(self) -> Int[np.ndarray, " n"] | None:
        """Return every example's class; None: they have prompts."""
        return None if self._labels is None else self._labels[self._parts[0].chosen]

    def captions(self, indices: Int[np.ndarray, " n"]) -> list[str]:
        """Return the prompts of these examples; of classes the names of their files."""
        return self._read(indices)[1]

    def _read(self, indices: Int[np.ndarray, " n"]) -> tuple[Batch, list[str]]:
        numbers = np.asarray(indices)
        ends = np.cumsum([len(part.chosen) for part in self._parts])
        found = np.unique(np.searchsorted(ends, numbers, "right"))
        if len(found) > 1:
            raise Refused(
                f"{self.name}: examples of several shapes, expected those of one; take its buckets."
            )
        number = int(found[0]) if len(found) else 0
        part = self._parts[number]
        chosen = part.chosen[numbers - (ends[number] - len(part.chosen))]
        try:
            arrays, texts = part.layout.unpack(part.records.read(chosen))
        except (CorruptImageError, ValueError) as error:
            raise Refused(
                f"{self.name}: {error}, expected sound records; copy the cache again."
            ) from error
        if not self.has_images and _TIME_IDS in arrays:  # a student is asked for whole images
            arrays[_TIME_IDS][:] = (*sides(part.pixels), 0, 0, *sides(part.pixels))
        return arrays, texts


class _Shape(NamedTuple):
    """A shape of a cache: latents, images, and which of the manifest's shards are of it."""

    size: Size
    pixels: Size
    shards: list[Entry]


def _shapes(manifest: Manifest, file: Path) -> list[_Shape]:
    """Return what a manifest says of its shapes, whose shards lie there one shape after another."""
    info, entries = manifest.info, manifest.shards
    try:
        int(info["channels"])
        numbers = info.get("shards", [0] * len(entries))
        pairs = zip(sizes_of(info["resolution"]), sizes_of(info["pixels"]), strict=True)
        if len(numbers) != len(entries) or numbers != sorted(numbers):
            raise Refused(f"shards={numbers!r:.80}")
        return [
            _Shape(*pair, [e for e, n in zip(entries, numbers, strict=True) if n == shape])
            for shape, pair in enumerate(pairs)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"{file} lacks pixels, resolution or channels ({error}), expected what `dmd2 cache` "
            "writes; write the cache again."
        ) from error


def _parts(
    folder: Path, manifest: Manifest, shapes: list[_Shape], chosen: Int[np.ndarray, " n"]
) -> list[_Part]:
    """Open the shapes of a cache that have any of the chosen examples."""
    start, parts = 0, []
    for shape in shapes:
        end = start + sum(entry.records for entry in shape.shards)
        here = chosen[(chosen >= start) & (chosen < end)] - start
        start = end
        if not len(here) and len(shapes) > 1:
            continue
        arrays = dict(manifest.layout.arrays)
        if "latent" in arrays:
            stored, dtype = arrays["latent"]
            arrays["latent"] = ((*sides(shape.size), stored[-1]), dtype)
        records = ArrayRecords(
            [
                Shard(str(folder / e.file), 0, e.records, e.records)
                for e in shape.shards
                if e.records
            ]
        )
        parts.append(_Part(shape.size, shape.pixels, Layout(arrays), records, here))
    return parts


def _asked_at(part: _Part, size: Size) -> _Part:
    """Return prompts alone as those of images of another shape."""
    factor = sides(part.pixels)[0] // sides(part.size)[0]
    height, width = (side * factor for side in sides(size))
    return part._replace(size=size, pixels=size_of(height, width))


def describe(source: Latents) -> str:
    """Return what a cache holds, as text: arrays, shards and the configuration that made it."""
    manifest = source.manifest
    size = sum(entry.bytes for entry in manifest.shards)
    records = sum(entry.records for entry in manifest.shards)
    lines = [
        f"{source.name}: {records:,} examples in {len(manifest.shards)} shards, {size / 1e6:,.1f} "
        "MB, every digest as sealed",
        *(f"  {k}: {dtype} {list(shape)}" for k, (shape, dtype) in manifest.layout.arrays.items()),
        *(f"  {say_sizes(size)}: {len(it):,} examples" for size, it in source.buckets.items()),
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
