"""Images and prompts through autoencoder and text encoders, once: `dmd2 cache`."""

import functools
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dmd2_jax.commands.cache.fill import Filling, batch_mesh, fill
from dmd2_jax.commands.cache.inputs import CacheInputs, open_inputs, unusable
from dmd2_jax.commands.cache.options import Options
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, say_sizes, sides
from dmd2_jax.data import to_model
from dmd2_jax.data.latents import NULL_FILE
from dmd2_jax.data.reading.captions import CaptionedImages
from dmd2_jax.data.reading.decode import CorruptImageError, ImageRefusedError
from dmd2_jax.data.reading.resize import Picture
from dmd2_jax.data.reading.sealed_shards import ShardFolder
from dmd2_jax.recipe.tables import aligned, parameter_table
from dmd2_jax.run.metrics import Progress
from dmd2_jax.runtime.prefetch import Prefetch
from dmd2_jax.runtime.sharding import replicate, shard_batch
from dmd2_jax.runtime.whole_file import whole_file
from dmd2_jax.text2image.image_latents import Autoencoder, check_finite, drawn_latents
from dmd2_jax.text2image.joining import Join
from dmd2_jax.text2image.text_encoder import encode_tokens, null_condition, size_ids, tokenize
from dmd2_jax.typing import Array, Int, Key, Params

__all__ = ["make_cache"]

_log = logging.getLogger(__name__)


def make_cache(options: Options) -> str:
    """Write latents and embeddings into shards, or go on where a killed process stopped.

    Args:
      options: what to make, and where: a folder that is new, or was begun with the same options
        and files.

    Returns:
      What was written, or would be.

    Raises:
      FileNotFoundError: if an input is missing.
      Refused: if an input is refused, an image cannot be read, the folder is another cache's,
        or something that is not a number comes out.
      Interrupted: at Ctrl-C.
      OSError: if the disk refuses.
    """
    work = open_inputs(options)
    filling = Filling(
        plan=work.plan(),
        shard_bytes=[len(it.numbers) * work.layouts[it.shape].size for it in work.shards],
        describe=functools.partial(_describe, work),
        write=functools.partial(_write, work),
        say=functools.partial(_say, work),
    )
    return fill(filling, options.out, dry_run=options.dry_run)


def _say(work: CacheInputs, folder: ShardFolder) -> str:
    """Return what is printed when all is written."""
    entries, out = folder.finished.values(), work.options.out
    total, left_out = sum(e.records for e in entries), sum(len(e.left_out) for e in entries)
    what = "prompts" if work.captioned is None else "images with captions"
    without = f" ({left_out} left out)" if left_out else ""
    return (
        f"{out}: {total:,} {what}{without} in {len(work.shards)} shards, "
        f"{sum(e.bytes for e in entries) / 1e6:,.1f} MB\n"
        f"use it with: --config.data.name=latents --config.data.path={out} "
        f"--config.model.resolution={say_sizes(work.latents)}"
    )


def _write(work: CacheInputs, folder: ShardFolder) -> None:
    """Write the shards that are not there yet, then what seals them."""
    reader = _Reader(work, sum(len(entry.left_out) for entry in folder.finished.values()))
    batches = [
        batch for n in range(len(work.shards)) if n not in folder.finished for batch in _of(work, n)
    ]
    encode = _Encoder(work)
    done = len(work.texts) - sum(len(batch.numbers) for batch in batches)
    records: list[bytes] = []
    left_out: list[str] = []
    with (
        Progress(total=len(work.texts), initial=done, description="caching") as progress,
        Prefetch(lambda i: reader.read(batches[i]), 0, len(batches)) as ahead,
    ):
        for i, batch in enumerate(batches):
            host = ahead.take(i)
            left_out += host.left_out
            records += encode.records(host)
            done += len(batch.numbers)
            if batch.last:
                folder.write(batch.shard, records, left_out)
                records, left_out = [], []
            progress.update(done)
    if not any(entry.records for entry in folder.finished.values()):
        raise Refused("no image can be used, expected at least one; check --images.")
    _write_null(work, folder.folder / NULL_FILE)
    info: dict[str, Any] = {
        "pixels": work.options.resolution,
        "resolution": work.latents,
        "channels": work.vae.latent_channels,
    }
    if len(work.shapes) > 1:
        info["shards"] = [it.shape for it in work.shards]
    folder.finish(work.layouts[0], [NULL_FILE], info)


class _Batch(NamedTuple):
    """Consecutive examples of one shard; `last` of it."""

    shard: int
    shape: int
    numbers: Int[np.ndarray, " n"]
    last: bool


def _of(work: CacheInputs, shard: int) -> Iterator[_Batch]:
    (shape, numbers), size = work.shards[shard], work.options.batch_size
    for first in range(0, len(numbers), size):
        last = first + size >= len(numbers)
        yield _Batch(shard, shape, numbers[first : first + size], last)


class _HostBatch(NamedTuple):
    """What is encoded at a time; arrays are filled up to the batch size.

    Attributes:
      shape: its number.
      numbers: [b] of the examples.
      ids: [b, t] tokens for each text encoder.
      images: uint8 [b, h, w, 3]; None: prompts alone.
      time_ids: [b, 6].
      kept: examples that are not filling.
      left_out: names of the examples that could not be read, which are not among them.
    """

    shape: int
    numbers: np.ndarray
    ids: tuple[np.ndarray, ...]
    images: np.ndarray | None
    time_ids: np.ndarray
    kept: int
    left_out: list[str]


class _Reader:
    """Reads and cuts out images in several threads."""

    def __init__(self, work: CacheInputs, left_out: int) -> None:
        """Begin, after that many images were left out."""
        self._work, self._left_out = work, left_out
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="images")

    def read(self, batch: _Batch) -> _HostBatch:
        """Read one batch."""
        work, options, size = self._work, self._work.options, self._work.shapes[batch.shape]
        numbers, pictures, left_out = batch.numbers, None, []
        if work.captioned is not None:
            picture = functools.partial(self._picture, work.captioned, size)
            read = list(self._pool.map(picture, numbers))
            left_out = [work.describe(int(n)) for n, p in zip(numbers, read, strict=True) if not p]
            numbers = np.array([n for n, p in zip(numbers, read, strict=True) if p], np.int64)
            pictures = [picture for picture in read if picture]
        count = len(numbers)
        # One program for every batch: the last example fills up.
        rows = np.minimum(np.arange(options.batch_size), max(count - 1, 0))
        if not count:
            return _HostBatch(batch.shape, numbers, (), None, np.empty((0, 6)), 0, left_out)
        tokens = tokenize(work.encoders, [work.texts[n] for n in numbers])
        images = np.stack([p.pixels for p in pictures])[rows] if pictures else None
        return _HostBatch(
            batch.shape,
            numbers[rows],
            tuple(t.ids[rows] for t in tokens),
            images,
            _time_ids(pictures, count, size, options.sizes)[rows],
            count,
            left_out,
        )

    def _picture(self, captioned: CaptionedImages, size: Size, number: int) -> Picture | None:
        options, name = self._work.options, captioned.describe(int(number))
        try:
            return captioned.picture(int(number), size, enlarge=options.enlarge)
        except (CorruptImageError, ImageRefusedError) as error:
            with self._lock:
                self._left_out += 1
                left_out = self._left_out
            if left_out > options.max_left_out:
                raise unusable(name, error, options.max_left_out) from error
            _log.warning("image left out: %s (%s)", name, error)
            return None


def _time_ids(pictures: Sequence[Picture] | None, count: int, size: Size, which: str) -> np.ndarray:
    target = sides(size)
    if pictures is None or which == "target":
        return np.tile(size_ids(target, (0, 0), target), (count, 1))
    return np.stack([size_ids(p.original, p.corner, target) for p in pictures])


class _Encoder:
    """One compiled program a shape, on as many of this machine's devices as divide the batch."""

    def __init__(self, work: CacheInputs) -> None:
        """Put the weights on the devices."""
        self._mesh = batch_mesh(work.options.batch_size)
        self._work = work
        self._params = replicate((work.vae_params, work.encoders.params), self._mesh)
        self._key = jax.random.key(work.options.seed)
        self._mean = work.options.latents == "mean"

    def records(self, host: _HostBatch) -> Iterator[bytes]:
        """Yield the record of every example of a batch."""
        work, layout = self._work, self._work.layouts[host.shape]
        if not host.kept:
            return
        inputs = shard_batch((host.ids, host.images, host.numbers.astype(np.int32)), self._mesh)
        static = (work.vae, work.encoders.modules, work.encoders.join, self._mean)
        encoded = _encode(static, self._params, self._key, *inputs)
        out = {name: np.asarray(x)[: host.kept] for name, x in encoded.items()}
        names = [work.describe(int(n)) for n in host.numbers[: host.kept]]
        if "latent" in out:
            check_finite(out["latent"], names, work.vae)
        _check_text(out, names, work.options.text_dtype)
        out["time_ids"] = host.time_ids
        for row, name in enumerate(names):
            text = work.texts[int(host.numbers[row])]
            try:
                yield layout.pack({k: out[k][row] for k in layout.arrays}, text)
            except Refused as error:
                raise Refused(f"{name}: {error} (--store=float32)") from error


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    static: tuple[Autoencoder, tuple, Join, bool],
    params: tuple[Params, tuple[Params, ...]],
    key: Key,
    ids: tuple[Array, ...],
    images: Array | None,
    numbers: Array,
) -> dict[str, Array]:
    """Encode a batch; the draw of example n is a function of (seed, n) alone."""
    vae, modules, join, mean = static
    out = encode_tokens(modules, params[1], ids, join)
    if images is not None:
        drawn = None if mean else key
        out["latent"] = drawn_latents(vae, params[0], to_model(images), drawn, numbers)
    return out


def _check_text(out: Mapping[str, np.ndarray], names: Sequence[str], dtype: str) -> None:
    for key in ("prompt_embeds", "pooled"):
        if key in out and not np.isfinite(out[key]).all():
            bad = np.isfinite(out[key]).reshape(len(names), -1).all(axis=1)
            raise Refused(
                f"{key} of {names[int(np.argmin(bad))]} are not finite when computed in {dtype}, "
                "expected numbers; use --text_dtype=float32, or download the text encoder again."
            )


def _write_null(work: CacheInputs, path: Path) -> None:
    from safetensors.numpy import save_file

    null = {name: np.ascontiguousarray(x) for name, x in null_condition(work.encoders).items()}
    with whole_file(path) as partial:
        save_file(null, partial)


def _shapes(work: CacheInputs) -> str:
    """Return the shapes; of several how many examples each has."""
    counts = [0] * len(work.shapes)
    for shard in work.shards:
        counts[shard.shape] += len(shard.numbers)
    each = [say_sizes(size) for size in work.shapes]
    if len(each) > 1:
        each = [f"{size} ({count:,})" for size, count in zip(each, counts, strict=True)]
    return ", ".join(each)


def _describe(work: CacheInputs, folder: ShardFolder, size: int) -> str:
    """Return what a dry run prints."""
    networks = {
        f"text encoder {i + 1}": params for i, params in enumerate(work.encoders.params)
    } | ({"autoencoder": work.vae_params} if work.captioned else {})
    rows: list[tuple[object, ...]] = [("array", "type", "shape", "bytes")]
    for name, (shape, dtype) in work.layouts[0].arrays.items():
        count = math.prod(shape) * np.dtype(dtype).itemsize
        rows.append((name, dtype, list(shape), f"{count:,}"))
    done, count = len(folder.finished), len(work.shards)
    state = f"{done} of {count} shards are there" if done else "new"
    return "\n".join(
        [
            parameter_table(networks),
            "",
            aligned(rows),
            "",
            f"dry run: {len(work.texts):,} examples at {_shapes(work)} pixels, "
            f"{count} shards of {work.per_shard:,}, about {size / 1e6:,.1f} MB to write; "
            f"{folder.folder}: {state}. Nothing was written.",
        ]
    )
