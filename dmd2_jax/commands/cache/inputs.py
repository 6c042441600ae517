"""Everything that the options of `dmd2 cache` name, opened and checked."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from dmd2_jax.commands.cache.options import Options
from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.captions import CaptionedImages, open_captions
from dmd2_jax.data.reading.decode import CorruptImageError, ImageRefusedError
from dmd2_jax.data.reading.prompts import read_prompts
from dmd2_jax.data.reading.sealed_shards import Layout
from dmd2_jax.families.published.folder import read_component, read_component_config
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.published.pipeline import PipelineIndex, read_pipeline_index
from dmd2_jax.recipe.text_family import pipeline_family
from dmd2_jax.runtime.integrity import params_digest
from dmd2_jax.runtime.places import path_of
from dmd2_jax.text2image.image_latents import Autoencoder, latent_shape
from dmd2_jax.text2image.pipeline import own_resolution
from dmd2_jax.text2image.text_encoder import (
    TextEncoders,
    condition_shapes,
    read_text_encoders,
    tokenize,
)
from dmd2_jax.text2image.tokenizer import warn_of_cut
from dmd2_jax.typing import Params

__all__ = ["DTYPES", "SHARD_BYTES", "CacheInputs", "open_inputs", "unusable"]

SHARD_BYTES = 2**28
"""Of a shard, about."""

_PROBE = ("a photograph of an astronaut riding a horse, 0123456789, é 数 !?", "")
"""Prompts by whose tokens two tokenizers are told apart."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
"""Types of the computation, by their names in flags."""


@dataclass(frozen=True)
class CacheInputs:
    """Everything that was opened and checked.

    Attributes:
      options: what was asked for; resolution is known.
      texts: prompt of every example.
      captioned: their images; None: prompts alone.
      index: the pipeline.
      encoders: its text encoders.
      vae: its autoencoder, without weights where there are no images.
      vae_params: its weights, or None.
      layout: of a record.
      per_shard: examples of a shard.
    """

    options: Options
    texts: Sequence[str]
    captioned: CaptionedImages | None
    index: PipelineIndex
    encoders: TextEncoders
    vae: Autoencoder
    vae_params: Params | None
    layout: Layout
    per_shard: int

    @property
    def shards(self) -> int:
        """Their number."""
        return -(-len(self.texts) // self.per_shard)

    @property
    def latent(self) -> tuple[int, int, int]:
        """Height, width and channels of a latent."""
        return latent_shape(self.vae, self.options.resolution)

    def describe(self, number: int) -> str:
        """Name an example, for messages."""
        if self.captioned is None:
            return f"{self.options.prompts} prompt {number + 1}"
        return self.captioned.describe(number)

    def plan(self) -> dict[str, Any]:
        """Return everything that decides what is written; where things lie decides nothing."""
        options = self.options
        inputs = hashlib.blake2b(digest_size=16)
        for number, text in enumerate(self.texts):
            name = self.captioned.names[number] if self.captioned else ""
            inputs.update(f"{len(name)} {len(text)} {name}{text}".encode())
        kept = ["resolution", "sizes", "text_dtype", "store"]
        if self.captioned:
            kept += ["latents", "seed", "enlarge", "vae_dtype"]
        ids = [t.ids for t in tokenize(self.encoders, _PROBE)]
        parts = {"ids": ids[0]} | {f"ids_{n}": more for n, more in enumerate(ids[1:], 2)}
        # One array where they fit, as the caches of earlier versions have it in their plans.
        fit = len({each.shape for each in ids}) == 1
        tokens = {"ids": np.concatenate(ids)} if fit else parts
        return {
            "pipeline": self.index.class_name,
            "examples": len(self.texts),
            "inputs": inputs.hexdigest(),
            "tokens": params_digest(tokens),
            "text_encoders": [params_digest(params) for params in self.encoders.params],
            "autoencoder": params_digest(self.vae_params) if self.captioned else "",
            **{name: getattr(options, name) for name in kept},
            "shard_examples": self.per_shard,
        }


def open_inputs(options: Options) -> CacheInputs:
    """Open and check everything that the options name, compiling nothing.

    Raises:
      FileNotFoundError: if an input is missing.
      MissingPackageError: if transformers is not installed.
      Refused: if one is refused.
    """
    index = read_pipeline_index(options.pipeline, options.variant)
    captioned = open_captions(options.images) if options.images else None
    texts = captioned.captions if captioned else read_prompts(options.prompts).texts
    vae_folder = path_of(options.vae).expanduser() if options.vae else index.part("vae")
    vae_params = None
    expected, dtype = index.expected("vae"), DTYPES[options.vae_dtype]
    if captioned:
        variant = None if options.vae else index.variant_of("vae")
        model, vae_params = read_component(
            vae_folder, expected=expected, variant=variant, dtype=dtype
        )
    else:
        config = read_component_config(vae_folder)
        model = PublishedModel.from_config(config, expected=expected, dtype=dtype)
    vae: Any = model.module
    encoders = read_text_encoders(index, dtype=DTYPES[options.text_dtype])
    resolution = options.resolution or own_resolution(index, vae)
    options = replace(options, resolution=resolution)
    latent = latent_shape(vae, resolution)
    _check_patches(index, resolution, latent[0])
    layout = _layout(options, index, encoders, latent, bool(captioned))
    per_shard = options.shard_examples or max(1, SHARD_BYTES // layout.size)
    if captioned:
        _check_first(captioned, options)
    tokenizer = encoders.longest
    warn_of_cut(tokenizer.counts(texts), tokenizer.length, texts)
    return CacheInputs(
        options, texts, captioned, index, encoders, vae, vae_params, layout, min(per_shard, 10**6)
    )


def _check_patches(index: PipelineIndex, resolution: int, side: int) -> None:
    """Refuse latents that a pipeline's transformer does not divide into patches."""
    if index.network != "transformer" or not (index.folder / index.network).is_dir():
        return
    try:
        pipeline_family(index, resolution=side)
    except ValueError as error:
        raise Refused(f"resolution={resolution} pixels are latents of {side}: {error}") from error


def _layout(
    options: Options,
    index: PipelineIndex,
    encoders: TextEncoders,
    latent: tuple[int, ...],
    images: bool,
) -> Layout:
    condition = condition_shapes(encoders)
    arrays = {name: (x.shape[1:], options.store) for name, x in condition.items()}
    if index.with_sizes:
        arrays["time_ids"] = ((6,), "float32")  # float16 counts pixels only up to 2048
    if images:
        arrays["latent"] = (latent, options.store)
    return Layout(dict(sorted(arrays.items())))


def _check_first(captioned: CaptionedImages, options: Options) -> None:
    """Read one image, so that a wrong size is found before anything is compiled."""
    try:
        captioned.picture(0, options.resolution, enlarge=options.enlarge)
    except (CorruptImageError, ImageRefusedError) as error:
        if not options.max_left_out:
            raise unusable(captioned.describe(0), error, 0) from error


def unusable(name: str, error: Exception, allowed: int) -> Refused:
    """Return the error of an image that cannot be decoded or is refused.

    Args:
      name: of its file.
      error: what is wrong with it.
      allowed: how many of them there may be.
    """
    reason = str(error) if isinstance(error, ImageRefusedError) else f"{name}: {error}."
    return Refused(
        f"{reason} More than --max_left_out={allowed} images cannot be used: replace or remove "
        "them, or raise it to go on without them."
    )
