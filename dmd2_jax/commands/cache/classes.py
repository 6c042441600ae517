"""Images of classes through an autoencoder, once: `dmd2 cache --vae`."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.commands.cache.fill import Filling, batch_mesh, fill
from dmd2_jax.commands.cache.inputs import DTYPES, SHARD_BYTES
from dmd2_jax.commands.cache.options import Options
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import say_sizes, sides, size_of, sizes_of
from dmd2_jax.data import Source, to_model
from dmd2_jax.data.latents import LABELS_FILE
from dmd2_jax.data.reading.sealed_shards import Layout, ShardFolder
from dmd2_jax.families.published.latents_scale import latents_scale
from dmd2_jax.run.metrics import Progress
from dmd2_jax.runtime.integrity import params_digest
from dmd2_jax.runtime.prefetch import Prefetch
from dmd2_jax.runtime.sharding import replicate, shard_batch
from dmd2_jax.runtime.whole_file import whole_file
from dmd2_jax.text2image.image_latents import (
    Autoencoder,
    check_finite,
    drawn_latents,
    latent_shape,
)
from dmd2_jax.text2image.pipeline import LatentDecoder, open_autoencoder
from dmd2_jax.typing import Array, Int, Key, Params

__all__ = ["make_class_cache"]

_DECIDING = ("resolution", "latents", "seed", "store", "enlarge", "vae_dtype")
_OF_PROMPTS = ("prompts", "variant", "max_left_out", "cut_prompts")


def make_class_cache(options: Options) -> str:
    """Write latents and class numbers into shards, or go on where a killed process stopped.

    Args:
      options: what to make, without a pipeline, and where; see `make_cache`.

    Returns:
      What was written, or would be.

    Raises:
      FileNotFoundError: if an input is missing.
      Refused: if an input is refused, an image cannot be read, the folder is another cache's,
        or something that is not a number comes out.
      Interrupted: at Ctrl-C.
      OSError: if the disk refuses.
    """
    work = _open(options)
    numbers = range(work.shards)
    filling = Filling(
        plan=work.plan(),
        shard_bytes=[sum(map(len, _of(work, n))) * work.layout.size for n in numbers],
        describe=functools.partial(_describe, work),
        write=functools.partial(_write, work),
        say=functools.partial(_say, work),
    )
    return fill(filling, options.out, dry_run=options.dry_run)


@dataclass(frozen=True)
class _Work:
    """What was opened and checked.

    Attributes:
      options: what was asked for.
      source: the images with their classes.
      decoder: the autoencoder.
      layout: of a record.
      per_shard: examples of a shard.
    """

    options: Options
    source: Source
    decoder: LatentDecoder
    layout: Layout
    per_shard: int

    @property
    def shards(self) -> int:
        return -(-len(self.source) // self.per_shard)

    def plan(self) -> dict[str, Any]:
        """Return everything that decides what is written; where things lie decides nothing."""
        listing = self.source.listing
        return {
            "examples": len(self.source),
            "inputs": None if listing is None else listing.digest,
            "classes": list(self.source.class_names or ()),
            "autoencoder": params_digest(self.decoder.vae_params),
            "latents_scale": latents_scale(self.decoder.vae),
            **{name: getattr(self.options, name) for name in _DECIDING},
            "shard_examples": self.per_shard,
        }


def _open(options: Options) -> _Work:
    """Open and check everything that the options name, compiling nothing."""
    for name in _OF_PROMPTS:
        if getattr(options, name):
            raise Refused(
                f"--{name}={getattr(options, name)!r} without --pipeline, expected it with a "
                "pipeline of prompts; leave it away: images of classes have none."
            )
    if not options.images or not options.resolution:
        raise Refused(
            f"got --images={options.images!r} and --resolution={_said(options)} with --vae "
            "alone, expected images of classes and their size in pixels; give both, such as "
            "--images=imagenet/ --resolution=256."
        )
    if len(sizes_of(options.resolution)) > 1:
        raise Refused(
            f"--resolution={say_sizes(options.resolution)} with --vae alone, expected one shape: "
            "several are of prompts, by --pipeline; give one."
        )
    size = size_of(*sides(options.resolution))
    decoder = open_autoencoder(options.vae, dtype=DTYPES[options.vae_dtype])
    latent = latent_shape(decoder.vae, size)
    resize = "enlarge" if options.enlarge else "crop"
    named = {"name": "image_folder", "path": options.images, "resize": resize}
    source = data.load(ConfigDict(named | {"max_corrupt": 0}), "all", size)
    if not len(source):
        raise Refused(f"{options.images} has no images, expected at least one; check --images.")
    layout = Layout({"latent": (latent, options.store)})
    per_shard = options.shard_examples or max(1, SHARD_BYTES // layout.size)
    return _Work(options, source, decoder, layout, min(per_shard, 10**6))


def _describe(work: _Work, folder: ShardFolder, size: int) -> str:
    """Return what a dry run prints."""
    height, width, channels = work.layout.arrays["latent"][0]
    return (
        f"dry run: {_classes(work)} at {_said(work.options)} pixels to latents of {height} x "
        f"{width} x {channels}, {work.shards} shards, about {size / 1e6:,.1f} MB to write. Nothing "
        "was written."
    )


def _say(work: _Work, folder: ShardFolder) -> str:
    """Return what is printed when all is written."""
    height, width, channels = work.layout.arrays["latent"][0]
    out = work.options.out
    return (
        f"{out}: {_classes(work)} in {work.shards} shards, "
        f"{sum(entry.bytes for entry in folder.finished.values()) / 1e6:,.1f} MB\n"
        f"use it with: --config.data.name=latents --config.data.path={out} "
        f"--config.model.resolution={say_sizes(size_of(height, width))} "
        f"--config.model.image_channels={channels} --config.model.vae={work.options.vae}"
    )


def _classes(work: _Work) -> str:
    return f"{len(work.source):,} images of {work.source.num_classes:,} classes"


def _said(options: Options) -> str:
    return say_sizes(options.resolution) if options.resolution else "0"


def _of(work: _Work, shard: int) -> Iterator[Int[np.ndarray, " n"]]:
    """Yield the numbers of a shard's examples, a batch at a time."""
    begin = shard * work.per_shard
    end = min(begin + work.per_shard, len(work.source))
    for first in range(begin, end, work.options.batch_size):
        yield np.arange(first, min(first + work.options.batch_size, end))


def _write(work: _Work, folder: ShardFolder) -> None:
    """Write the shards that are not there yet, then the classes and what seals all."""
    missing = [n for n in range(work.shards) if n not in folder.finished]
    batches = [(n, numbers) for n in missing for numbers in _of(work, n)]
    encode, records = _Encoder(work), []
    total = len(work.source)
    done = total - sum(len(numbers) for _, numbers in batches)
    with (
        Progress(total=total, initial=done, description="caching") as progress,
        Prefetch(lambda i: work.source.examples(batches[i][1]), 0, len(batches)) as ahead,
    ):
        for i, (shard, numbers) in enumerate(batches):
            records += encode.records(ahead.take(i)["image"], numbers)
            done += len(numbers)
            if i + 1 == len(batches) or batches[i + 1][0] != shard:
                folder.write(shard, records)
                records = []
            progress.update(done)
    _write_labels(work, folder.folder / LABELS_FILE)
    height, width, channels = work.layout.arrays["latent"][0]
    info = {
        "pixels": work.options.resolution,
        "resolution": size_of(height, width),
        "channels": channels,
        "num_classes": work.source.num_classes,
        "class_names": work.source.class_names,
    }
    folder.finish(work.layout, [LABELS_FILE], info)


def _write_labels(work: _Work, path: Path) -> None:
    from safetensors.numpy import save_file

    labels = work.source.known_labels()
    assert labels is not None  # which folders of images know
    with whole_file(path) as partial:
        save_file({"label": np.ascontiguousarray(labels, np.int32)}, partial)


class _Encoder:
    """The one compiled program, on as many of this machine's devices as divide the batch."""

    def __init__(self, work: _Work) -> None:
        """Put the weights on the devices."""
        self._mesh = batch_mesh(work.options.batch_size)
        self._work = work
        self._params = replicate(work.decoder.vae_params, self._mesh)
        self._key = jax.random.key(work.options.seed)
        self._static = (work.decoder.vae, work.options.latents == "mean")

    def records(self, images: np.ndarray, numbers: Int[np.ndarray, " n"]) -> Iterator[bytes]:
        """Yield the record of every example of a batch."""
        work, count = self._work, len(numbers)
        # One program for every batch: the last example fills up.
        rows = np.minimum(np.arange(work.options.batch_size), count - 1)
        colour = np.broadcast_to(images, (*images.shape[:3], 3))
        inputs = shard_batch((colour[rows], numbers[rows].astype(np.int32)), self._mesh)
        latents = np.asarray(_encode(self._static, self._params, self._key, *inputs))[:count]
        names = [work.source.describe(int(n)) for n in numbers]
        check_finite(latents, names, work.decoder.vae)
        for latent, name in zip(latents, names, strict=True):
            try:
                yield work.layout.pack({"latent": latent}, Path(name).name)
            except Refused as error:
                raise Refused(f"{name}: {error} (--store=float32)") from error


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    static: tuple[Autoencoder, bool], params: Params, key: Key, images: Array, numbers: Array
) -> Array:
    vae, mean = static
    return drawn_latents(vae, params, to_model(images), None if mean else key, numbers)
