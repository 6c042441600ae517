"""Everything that the options of `dmd2 cache` name, opened and checked."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dmd2_jax.commands.cache.options import Options
from dmd2_jax.commands.cache.shapes import numbers_by_shape
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, Sizes, say_sizes, sides, size_of, sizes_of
from dmd2_jax.data.reading.captions import CaptionedImages, open_captions
from dmd2_jax.data.reading.decode import CorruptImageError, ImageRefusedError
from dmd2_jax.data.reading.prompts import read_prompts
from dmd2_jax.data.reading.sealed_shards import Layout
from dmd2_jax.families.published.folder import read_component, read_component_config
from dmd2_jax.families.published.latents_scale import latents_scale
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
    refuse_cut,
    tokenize,
)
from dmd2_jax.text2image.tokenizer import warn_of_cut
from dmd2_jax.typing import Int, Params

__all__ = ["DTYPES", "SHARD_BYTES", "CacheInputs", "Shard", "open_inputs", "unusable"]

SHARD_BYTES = 2**28
"""Of a shard, about."""

_PROBE = ("a photograph of an astronaut riding a horse, 0123456789, é 数 !?", "")
"""Prompts by whose tokens two tokenizers are told apart."""

_WIDTHS = {"prompt_embeds", "pooled"}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
"""Types of the computation, by their names in flags."""


class Shard(NamedTuple):
    """Examples of one shape that lie together.

    Attributes:
      shape: its number.
      numbers: of the examples.
    """

    shape: int
    numbers: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class CacheInputs:
    """Everything that was opened and checked.

    Attributes:
      options: what was asked for; resolution is known: the shapes that have images.
      texts: prompt of every example.
      captioned: their images; None: prompts alone.
      index: the pipeline.
      encoders: its text encoders.
      vae: its autoencoder, without weights where there are no images.
      vae_params: its weights, or None.
      layouts: of a record of each shape.
      shards: in order, a shape's one after the other.
      per_shard: examples of a shard.
    """

    options: Options
    texts: Sequence[str]
    captioned: CaptionedImages | None
    index: PipelineIndex
    encoders: TextEncoders
    vae: Autoencoder
    vae_params: Params | None
    layouts: tuple[Layout, ...]
    shards: tuple[Shard, ...]
    per_shard: int

    @property
    def shapes(self) -> tuple[Size, ...]:
        """The shapes of the images, in pixels."""
        return sizes_of(self.options.resolution)

    @property
    def latents(self) -> Sizes:
        """The shapes of the latents."""
        pairs = tuple(latent_shape(self.vae, size)[:2] for size in self.shapes)
        return size_of(*pairs[0]) if len(pairs) == 1 else pairs

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
            "latents_scale": latents_scale(self.vae) if self.captioned else {},
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
    captioned, texts, describe = _open_texts(options)
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
    encoders = read_text_encoders(index, dtype=DTYPES[options.text_dtype]).fitted(texts)
    if options.cut_prompts:
        longest = encoders.longest
        warn_of_cut(longest.counts(texts), longest.length, texts)
    else:
        refuse_cut(encoders, texts, describe)
    resolution = options.resolution or own_resolution(index, vae)
    for size in sizes_of(resolution):
        _check_network(index, encoders, size, latent_shape(vae, size))
    numbers = numbers_by_shape(captioned, len(texts), sizes_of(resolution))
    if len(numbers) > 1:  # those of no image are left away
        there = [i for i, of_shape in enumerate(numbers) if len(of_shape)]
        pairs = tuple(sides(sizes_of(resolution)[i]) for i in there)
        resolution = size_of(*pairs[0]) if len(pairs) == 1 else pairs
        numbers = [numbers[i] for i in there]
    options = replace(options, resolution=resolution)
    layouts = tuple(
        _layout(options, index, encoders, latent_shape(vae, size), bool(captioned))
        for size in sizes_of(resolution)
    )
    per_shard = options.shard_examples or max(1, SHARD_BYTES // max(it.size for it in layouts))
    per_shard = min(per_shard, 10**6)
    shards = tuple(
        Shard(shape, of_shape[begin : begin + per_shard])
        for shape, of_shape in enumerate(numbers)
        for begin in range(0, len(of_shape), per_shard)
    )
    if captioned:
        _check_first(captioned, options, shards[0].numbers[0])
    return CacheInputs(
        options, texts, captioned, index, encoders, vae, vae_params, layouts, shards, per_shard
    )


def _open_texts(
    options: Options,
) -> tuple[CaptionedImages | None, Sequence[str], Callable[[int], str]]:
    """Return images, their captions or the prompts alone, and what names one by its number."""
    if not options.images:
        prompts = read_prompts(options.prompts)
        return None, prompts.texts, prompts.describe
    captioned = open_captions(options.images)
    return captioned, captioned.captions, captioned.describe


def _check_network(
    index: PipelineIndex, encoders: TextEncoders, resolution: Size, latent: tuple[int, ...]
) -> None:
    """Refuse latents that a transformer does not divide into patches, and prompts not for it."""
    if index.network != "transformer" or not (index.folder / index.network).is_dir():
        return
    size = size_of(latent[0], latent[1])
    try:
        family = pipeline_family(index, resolution=size)
    except ValueError as error:
        raise Refused(
            f"resolution={say_sizes(resolution)} pixels are latents of {say_sizes(size)}: {error}"
        ) from error
    made, wanted = condition_shapes(encoders), family.cond_shapes(1)
    widths = {name: (made[name].shape[-1], wanted[name].shape[-1]) for name in _WIDTHS & set(made)}
    if wrong := {name: pair for name, pair in widths.items() if pair[0] != pair[1]}:
        said = ", ".join(f"{name} of width {a} for {b}" for name, (a, b) in sorted(wrong.items()))
        raise Refused(
            f"{index.folder}: the text encoders make {said}, expected what {index.network}/ reads; "
            "take all parts of one release."
        )


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


def _check_first(captioned: CaptionedImages, options: Options, first: int) -> None:
    """Read one image, so that a wrong size is found before anything is compiled."""
    try:
        captioned.picture(first, sizes_of(options.resolution)[0], enlarge=options.enlarge)
    except (CorruptImageError, ImageRefusedError) as error:
        if not options.max_left_out:
            raise unusable(captioned.describe(first), error, 0) from error


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
