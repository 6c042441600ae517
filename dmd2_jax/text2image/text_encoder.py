"""Prompts to what text-to-image networks are conditioned on; what of it: text2image/joining.py."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.folder import read_component
from dmd2_jax.families.published.pipeline import (
    LANGUAGE_MODELS,
    T5_TOKENS,
    PipelineIndex,
    read_pipeline_index,
)
from dmd2_jax.networks.clip import ClipText
from dmd2_jax.networks.qwen import Qwen
from dmd2_jax.networks.t5 import T5Encoder
from dmd2_jax.text2image.joining import Join, StableDiffusionJoin, join_of
from dmd2_jax.text2image.llm import LlmTokenizer, open_llm_tokenizer
from dmd2_jax.text2image.tokenizer import (
    Tokenizer,
    Tokens,
    open_t5_tokenizer,
    open_tokenizer,
    warn_of_cut,
)
from dmd2_jax.typing import Array, DType, Float, Int, Params

__all__ = [
    "Condition",
    "TextEncoders",
    "condition_shapes",
    "encode_prompts",
    "encode_tokens",
    "null_condition",
    "open_part_tokenizer",
    "read_text_encoders",
    "refuse_cut",
    "size_ids",
    "tokenize",
]

Condition = dict[str, Array | np.ndarray]
"""prompt_embeds [n, t, d]; of SDXL, SD 3 and FLUX.1 also pooled [n, e]; of SDXL, once they are
known, time_ids [n, 6]; of a language model prompt_mask [n, t]."""

Encoder = ClipText | T5Encoder | Qwen

_NAMED = 3  # of the prompts that are too long


class TextEncoders(NamedTuple):
    """A pipeline's tokenizers and text encoders.

    Attributes:
      tokenizers: one to three.
      modules: the encoders, in the same order.
      params: their weights.
      zero_null: whether no prompt is conditioned on as zeros, not as the empty prompt.
      join: how their features make a condition.
    """

    tokenizers: tuple[Tokenizer | LlmTokenizer, ...]
    modules: tuple[Encoder, ...]
    params: tuple[Params, ...]
    zero_null: bool
    join: Join = StableDiffusionJoin()

    @property
    def longest(self) -> Tokenizer | LlmTokenizer:
        """The tokenizer that makes the most tokens of a prompt."""
        return max(self.tokenizers, key=lambda tokenizer: tokenizer.length)

    def fitted(self, texts: Sequence[str]) -> "TextEncoders":
        """Return the encoders that fill prompts up no further than these and the empty one need."""
        fitted = tuple(tokenizer.fitted([*texts, ""]) for tokenizer in self.tokenizers)
        return self._replace(tokenizers=fitted)


def read_text_encoders(
    pipeline: str | os.PathLike | PipelineIndex,
    *,
    dtype: DType = jnp.float32,
) -> TextEncoders:
    """Read a pipeline's text encoders and their tokenizers.

    Args:
      pipeline: its folder, or what its index says.
      dtype: type of the computation.

    Raises:
      FileNotFoundError: if it is no pipeline's folder.
      MissingPackageError: if transformers is not installed.
      ValueError: if a part is missing, damaged, or does not fit the others.
    """
    index = pipeline if isinstance(pipeline, PipelineIndex) else read_pipeline_index(pipeline)
    tokenizers, modules, weights = [], [], []
    for tokenizer, encoder in index.text_parts:
        model, params = read_component(
            index.part(encoder),
            expected=index.expected(encoder),
            variant=index.variant_of(encoder),
            dtype=dtype,
        )
        tokenizers.append(open_part_tokenizer(index, tokenizer, model.module))
        modules.append(model.module)
        weights.append(params)
    clips = zip(tokenizers, modules, strict=True)
    lengths = {tokenizer.length for tokenizer, module in clips if isinstance(module, ClipText)}
    if len(lengths) > 1:
        raise Refused(
            f"{index.folder}: CLIP's tokenizers make prompts of {sorted(lengths)} tokens, expected "
            "one length; take all parts from one pipeline."
        )
    return TextEncoders(
        tuple(tokenizers), tuple(modules), tuple(weights), index.zero_null, join_of(index)
    )


def open_part_tokenizer(index: PipelineIndex, part: str, encoder: Any) -> Tokenizer | LlmTokenizer:
    """Open a part of a pipeline that is a tokenizer.

    Args:
      index: what the pipeline's model_index.json says.
      part: the tokenizer's name.
      encoder: the network that reads its tokens.

    Raises:
      MissingPackageError: if the package that reads it is not installed.
      ValueError: if it is missing or damaged, or its vocabulary is not the encoder's.
    """
    folder, name = index.part(part), index.class_name
    if isinstance(encoder, Qwen):
        return open_llm_tokenizer(folder, encoder, LANGUAGE_MODELS[name])
    if isinstance(encoder, T5Encoder):
        return open_t5_tokenizer(folder, encoder, T5_TOKENS[name])
    return open_tokenizer(folder, encoder)


def tokenize(encoders: TextEncoders, texts: Sequence[str]) -> tuple[Tokens, ...]:
    """Return the tokens of prompts for each encoder."""
    return tuple(tokenizer(texts) for tokenizer in encoders.tokenizers)


def encode_tokens(
    modules: Sequence[Encoder],
    params: Sequence[Params],
    ids: Sequence[Int[Array, "n t"]],
    join: Join = StableDiffusionJoin(),  # noqa: B008 - it is a value, and has no parts
) -> dict[str, Array]:
    """Encode tokens; pure, for `jax.jit` with `modules` and `join` static.

    Args:
      modules: the text encoders.
      params: their weights.
      ids: the tokens for each.
      join: how their features make a condition.

    Returns:
      prompt_embeds [n, t, d] and, of several encoders, pooled [n, e]; float32.
    """
    features = [
        module.apply(weights, tokens)
        for module, weights, tokens in zip(modules, params, ids, strict=True)
    ]
    return join(features)


_encode = jax.jit(encode_tokens, static_argnums=(0, 3))


def encode_prompts(
    encoders: TextEncoders, texts: Sequence[str], *, batch_size: int = 32
) -> Condition:
    """Encode prompts, warning of those that are cut.

    Args:
      encoders: from `read_text_encoders`.
      texts: n >= 1 prompts.
      batch_size: prompts at a time; the last batch is filled up, so that one program does.

    Returns:
      prompt_embeds [n, t, d] and, of others than SD 1 and 2, pooled [n, e]; float32, on the host.

    Raises:
      ValueError: if there are no prompts.
    """
    if not texts:
        raise Refused("got no prompts, expected at least one; give a prompt.")
    tokens = tokenize(encoders, texts)
    longest = encoders.longest
    counts = tokens[encoders.tokenizers.index(longest)].counts
    warn_of_cut(counts, longest.length, texts)
    size = min(batch_size, len(texts))
    parts = []
    for begin in range(0, len(texts), size):
        rows = np.minimum(np.arange(begin, begin + size), len(texts) - 1)
        ids = [t.ids[rows] for t in tokens]
        parts.append(_encode(encoders.modules, encoders.params, ids, encoders.join))
    return {name: _joined([part[name] for part in parts], len(texts)) for name in parts[0]}


def refuse_cut(
    encoders: TextEncoders,
    texts: Sequence[str],
    describe: Callable[[int], str] = lambda number: f"prompt {number + 1}",
) -> None:
    """Refuse prompts that no encoder reads whole, computing nothing.

    CLIP's 77 tokens are no limit where T5 reads more: its half of the condition is cut there, as in
    diffusers.

    Args:
      encoders: from `read_text_encoders`.
      texts: the prompts.
      describe: names a prompt by its number, from 0.

    Raises:
      Refused: naming the first ones, their tokens and how many are read.
    """
    longest = encoders.longest
    counts = longest.counts(texts)
    cut = np.flatnonzero(counts > longest.length)
    if len(cut):
        named = ", ".join(f"{describe(int(n))} has {counts[n]}" for n in cut[:_NAMED])
        raise Refused(
            f"{len(cut)} of {len(texts)} prompts lose their ends: {named} tokens, expected at most "
            f"{longest.length}: {texts[cut[0]]!r:.60}; shorten what is too long, or have only the "
            "beginnings read by `cut_prompts=True`."
        )


def _joined(parts: Sequence[Array], count: int) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in parts])[:count]


def null_condition(encoders: TextEncoders) -> Condition:
    """Return the condition of no prompt, the u of guidance, without time_ids.

    Returns:
      As `encode_prompts` for one prompt: the empty one's embedding, or zeros where the pipeline
      says force_zeros_for_empty_prompt (SDXL).
    """
    if not encoders.zero_null:
        return encode_prompts(encoders, [""])
    return {name: np.zeros(x.shape, np.float32) for name, x in condition_shapes(encoders).items()}


def condition_shapes(encoders: TextEncoders) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of one prompt's condition, without time_ids, computing nothing."""
    ids = [jax.ShapeDtypeStruct((1, t.length), jnp.int32) for t in encoders.tokenizers]

    def encode(params: Sequence[Params], ids: Sequence[Array]) -> dict[str, Array]:
        return encode_tokens(encoders.modules, params, ids, encoders.join)

    return jax.eval_shape(encode, encoders.params, ids)


def size_ids(
    original: tuple[int, int], corner: tuple[int, int], target: tuple[int, int]
) -> Float[np.ndarray, " 6"]:
    """Return SDXL's time_ids of one image.

    Args:
      original: height and width in pixels before resizing.
      corner: top and left of the crop, in pixels after resizing.
      target: height and width of what is drawn.
    """
    return np.array([*original, *corner, *target], np.float32)
