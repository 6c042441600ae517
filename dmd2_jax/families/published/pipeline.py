"""A pipeline's folder as diffusers writes it: model_index.json beside a folder for each part."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.families.published.digests import check_plain_digests
from dmd2_jax.families.published.folder import has_variant
from dmd2_jax.runtime.fetched import fetched

__all__ = [
    "AUTOENCODERS",
    "CLASS_PIPELINES",
    "LANGUAGE_MODELS",
    "PIPELINES",
    "LanguageModel",
    "PipelineIndex",
    "read_pipeline_index",
    "says_distilled",
]

INDEX = "model_index.json"

# The second one: taesd, taesdxl, taesd3 and taef1.
_STABLE_DIFFUSIONS = ("AutoencoderKL", "AutoencoderTiny")

AUTOENCODERS = (*_STABLE_DIFFUSIONS, "AutoencoderKLFlux2", "AutoencoderKLQwenImage")
"""The classes that a pipeline's `vae` may be of, one or another."""

_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_QWEN_TOKENIZERS = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_T5 = ("T5EncoderModel",)
_T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")

_QWEN3 = ("Qwen3Model", "Qwen3ForCausalLM")

_COMMON = {
    "unet": ("UNet2DConditionModel",),
    "vae": _STABLE_DIFFUSIONS,
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": _CLIP_TOKENIZERS,
}

PIPELINES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "StableDiffusionPipeline": _COMMON,
    "StableDiffusionXLPipeline": {
        **_COMMON,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": _CLIP_TOKENIZERS,
    },
    "StableDiffusion3Pipeline": {
        "transformer": ("SD3Transformer2DModel",),
        "vae": _STABLE_DIFFUSIONS,
        "text_encoder": ("CLIPTextModelWithProjection",),
        "tokenizer": _CLIP_TOKENIZERS,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": _CLIP_TOKENIZERS,
        "text_encoder_3": _T5,
        "tokenizer_3": _T5_TOKENIZERS,
    },
    "FluxPipeline": {
        "transformer": ("FluxTransformer2DModel",),
        "vae": _STABLE_DIFFUSIONS,
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": _CLIP_TOKENIZERS,
        "text_encoder_2": _T5,
        "tokenizer_2": _T5_TOKENIZERS,
    },
    "Flux2KleinPipeline": {
        "transformer": ("Flux2Transformer2DModel",),
        "vae": ("AutoencoderKLFlux2",),
        "text_encoder": _QWEN3,
        "tokenizer": _QWEN_TOKENIZERS,
    },
    "ZImagePipeline": {
        "transformer": ("ZImageTransformer2DModel",),
        "vae": _STABLE_DIFFUSIONS,
        "text_encoder": _QWEN3,
        "tokenizer": _QWEN_TOKENIZERS,
    },
    "QwenImagePipeline": {
        "transformer": ("QwenImageTransformer2DModel",),
        "vae": ("AutoencoderKLQwenImage",),
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
        "tokenizer": _QWEN_TOKENIZERS,
    },
}
"""The pipelines that are read: class -> part -> the classes that will do."""

CLASS_PIPELINES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "DiTPipeline": {"transformer": ("DiTTransformer2DModel",), "vae": _STABLE_DIFFUSIONS},
}
"""Likewise those of classes, which have no text encoders."""

_PARTS = {**PIPELINES, **CLASS_PIPELINES}

T5_TOKENS = {"StableDiffusion3Pipeline": 256, "FluxPipeline": 512}
"""Tokens of T5's part of a prompt, by class of the pipeline; diffusers' max_sequence_length."""


class LanguageModel(NamedTuple):
    """How a pipeline reads prompts with a language model.

    Attributes:
      before, after: the texts around a prompt.
      states: which hidden states are taken, side by side; 0 is that of the embedding, -1 that after
        the last norm.
      length: tokens that are read at most, those of `before` and `after` among them.
      multiple: prompts are filled up to a multiple of so many tokens.
      drop: how many of the first tokens are left out of the condition.
      filled: whether what fills a prompt up is part of the condition; else a mask tells it.
    """

    before: str
    after: str
    states: tuple[int, ...]
    length: int
    multiple: int
    drop: int = 0
    filled: bool = False


LANGUAGE_MODELS = {
    "Flux2KleinPipeline": LanguageModel(
        # Qwen's chat: one turn of a user, and the beginning of an answer that has thought.
        before="<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        states=(9, 18, 27),
        length=512,
        multiple=512,
        filled=True,
    ),
    "ZImagePipeline": LanguageModel(
        # Qwen's chat: one turn of a user, and the beginning of an answer that may think.
        before="<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n",
        states=(-2,),
        length=512,
        multiple=32,
    ),
    "QwenImagePipeline": LanguageModel(
        before="<|im_start|>system\nDescribe the image by detailing the color, shape, size, "
        "texture, quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
        "<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n",
        states=(-1,),
        length=34 + 512,
        multiple=32,
        drop=34,  # what stands before the user's words, in the release's tokens
    ),
}
"""The pipelines whose prompts a language model reads, by class."""

# T5 alone: of CLIP's also the pooled embedding is read, by the modulation of every block.
_MAY_LACK = {"StableDiffusion3Pipeline": ("text_encoder_3", "tokenizer_3")}
_WITH_SIZES = ("StableDiffusionXLPipeline",)
_SIDES = {"Flux2KleinPipeline": 64}
DISTILLED = ("Flux2KleinPipeline",)
"""The pipelines that can be told that their network needs no guidance."""

IS_DISTILLED = "is_distilled"
"""What their index says of such a network."""

NETWORKS = ("unet", "transformer")
"""What the part is called that denoises."""


class PipelineIndex(NamedTuple):
    """What model_index.json says of a pipeline.

    Attributes:
      folder: of the pipeline.
      class_name: a name of `PIPELINES` or `CLASS_PIPELINES`.
      zero_null: whether the embedding of no prompt is zeros, not that of the empty prompt.
      scheduler: class of its scheduler; "": not said.
      variant: of the weights, "fp16" and the like, in the parts that have it; "": none is meant.
      absent: parts that the pipeline was saved without, and works without.
    """

    folder: Path
    class_name: str
    zero_null: bool
    scheduler: str = ""
    variant: str = ""
    absent: tuple[str, ...] = ()

    @property
    def side(self) -> int:
        """The side of a transformer's latents, where its config.json has no sample_size."""
        return _SIDES.get(self.class_name, 128)

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Its parts, but the scheduler, and the classes that will do for each."""
        return _PARTS[self.class_name]

    @property
    def network(self) -> str:
        """The part that denoises: "unet" or "transformer"."""
        return next(name for name in NETWORKS if name in self.parts)

    @property
    def with_sizes(self) -> bool:
        """Whether a condition has `time_ids`, the sizes of the image."""
        return self.class_name in _WITH_SIZES

    def part(self, name: str) -> Path:
        """Return the folder of a part.

        Raises:
          ValueError: if it is not there.
        """
        folder = self.folder / name
        if not folder.is_dir():
            parts = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
            raise Refused(
                f"{self.folder} has no part {name}/, got {parts}, expected one as "
                f"{' or '.join(self.parts[name])}; download the whole pipeline."
            )
        return folder

    def variant_of(self, name: str) -> str | None:
        """Return the variant of a part's weights that is meant; None: the part has none."""
        return self.variant if self.variant and has_variant(self.part(name), self.variant) else None

    def expected(self, name: str) -> tuple[str, ...]:
        """Return the classes that a part may be of."""
        return self.parts[name]

    @property
    def text_parts(self) -> tuple[tuple[str, str], ...]:
        """The names of each tokenizer and its text encoder."""
        pairs = ((f"tokenizer{end}", f"text_encoder{end}") for end in ("", "_2", "_3"))
        return tuple(p for p in pairs if p[0] in self.parts and not set(p) & set(self.absent))


def read_pipeline_index(
    folder: str | os.PathLike,
    variant: str = "",
    known: Mapping[str, Mapping[str, tuple[str, ...]]] = PIPELINES,
) -> PipelineIndex:
    """Read a pipeline's model_index.json.

    Args:
      folder: of the pipeline.
      variant: of its weights; see `PipelineIndex`.
      known: the pipelines that will do, `PIPELINES` or `CLASS_PIPELINES`.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged, of another pipeline, or says that a part was left out or is of
        another class.
    """
    file = fetched(folder).expanduser() / INDEX
    if file.parent.is_file():
        raise Refused(
            f"{folder} is one file, expected the folder of a diffusers pipeline, which has the "
            "tokenizers and settings that such a file lacks; give the folder of the pipeline that "
            "it was made from, and the file as weights."
        )
    if not file.is_file():
        raise Missing(
            f"{folder} has no {INDEX}, expected the folder of a diffusers pipeline (vae/, "
            "text_encoder/, tokenizer/ ...); give the folder that save_pretrained wrote, or that "
            "`hf download OWNER/NAME` fetches and names."
        )
    try:
        index = read_json(file)
        name = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(
            f"{file} cannot be read ({type(error).__name__}: {error}), expected the index of a "
            "diffusers pipeline; download it again."
        ) from error
    if name not in known:
        raise Refused(
            f"{file} is of class {name!r:.80}, expected {' or '.join(known)}; use SD 1.x, "
            "SD 2.x, SDXL, SD 3, SD 3.5, FLUX.1, FLUX.2-klein, Z-Image, Qwen-Image or a model made "
            "from them."
        )
    check_plain_digests(file.parent)
    absent, may_lack = [], _MAY_LACK.get(name, ())
    for part, classes in known[name].items():
        entry = index.get(part)
        found = entry[-1] if isinstance(entry, list) and entry else None
        if found is None and part in may_lack:
            absent.append(part)
        elif found not in classes:
            only = f" (only {' and '.join(may_lack)} may be absent)" if may_lack else ""
            raise Refused(
                f"{file} has {part} = {entry!r:.80}, expected {' or '.join(classes)}{only}; use a "
                "whole pipeline, not a refiner or one saved without the part."
            )
    if absent and len(absent) < len(may_lack):
        raise Refused(
            f"{file} has no {absent[0]}, expected {' and '.join(may_lack)} both or neither; use a "
            "whole pipeline, or write [null, null] for both."
        )
    zero = name == "StableDiffusionXLPipeline" and bool(
        index.get("force_zeros_for_empty_prompt", True)
    )
    entry = index.get("scheduler")
    scheduler = entry[-1] if isinstance(entry, list) and entry else None
    said = scheduler if isinstance(scheduler, str) else ""
    return PipelineIndex(file.parent, name, zero, said, variant, tuple(absent))


def says_distilled(folder: Path) -> bool:
    """Return whether a pipeline's index says that its network has guidance in its weights.

    Args:
      folder: of the pipeline; of anything else it says nothing.

    Raises:
      ValueError: if the index is damaged.
    """
    file = folder / INDEX
    index = read_json(file) if file.is_file() else None
    return isinstance(index, dict) and index.get(IS_DISTILLED) is True
