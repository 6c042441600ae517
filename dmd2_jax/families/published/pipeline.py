"""A pipeline's folder as diffusers writes it: model_index.json beside a folder for each part."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.families.published.folder import has_variant
from dmd2_jax.runtime.fetched import fetched

__all__ = ["AUTOENCODERS", "PIPELINES", "PipelineIndex", "read_pipeline_index"]

INDEX = "model_index.json"

AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
"""The classes that a pipeline's `vae` may be of."""

_COMMON = {
    "unet": ("UNet2DConditionModel",),
    "vae": AUTOENCODERS,
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}

PIPELINES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "StableDiffusionPipeline": _COMMON,
    "StableDiffusionXLPipeline": {
        **_COMMON,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    },
}
"""The pipelines that are read: class -> part -> the classes that will do."""


class PipelineIndex(NamedTuple):
    """What model_index.json says of a pipeline.

    Attributes:
      folder: of the pipeline.
      class_name: a name of `PIPELINES`.
      zero_null: whether the embedding of no prompt is zeros, not that of the empty prompt.
      scheduler: class of its scheduler; "": not said.
      variant: of the weights, "fp16" and the like, in the parts that have it; "": none is meant.
    """

    folder: Path
    class_name: str
    zero_null: bool
    scheduler: str = ""
    variant: str = ""

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
                f"{' or '.join(PIPELINES[self.class_name][name])}; download the whole pipeline."
            )
        return folder

    def variant_of(self, name: str) -> str | None:
        """Return the variant of a part's weights that is meant; None: the part has none."""
        return self.variant if self.variant and has_variant(self.part(name), self.variant) else None

    def expected(self, name: str) -> tuple[str, ...]:
        """Return the classes that a part may be of."""
        return PIPELINES[self.class_name][name]

    @property
    def text_parts(self) -> tuple[tuple[str, str], ...]:
        """The names of each tokenizer and its text encoder."""
        both = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
        return tuple(pair for pair in both if pair[0] in PIPELINES[self.class_name])


def read_pipeline_index(folder: str | os.PathLike, variant: str = "") -> PipelineIndex:
    """Read a pipeline's model_index.json.

    Args:
      folder: of the pipeline.
      variant: of its weights; see `PipelineIndex`.

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
            f"{folder} has no {INDEX}, expected the folder of a diffusers pipeline (unet/, vae/, "
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
    if name not in PIPELINES:
        raise Refused(
            f"{file} is of class {name!r:.80}, expected {' or '.join(PIPELINES)}; use SD 1.x, "
            "SD 2.x, SDXL or a model made from them."
        )
    for part, classes in PIPELINES[name].items():
        entry = index.get(part)
        found = entry[-1] if isinstance(entry, list) and entry else None
        if found not in classes:
            raise Refused(
                f"{file} has {part} = {entry!r:.80}, expected {' or '.join(classes)}; use a whole "
                "pipeline, not a refiner or one saved without the part."
            )
    zero = name == "StableDiffusionXLPipeline" and bool(
        index.get("force_zeros_for_empty_prompt", True)
    )
    entry = index.get("scheduler")
    scheduler = entry[-1] if isinstance(entry, list) and entry else None
    said = scheduler if isinstance(scheduler, str) else ""
    return PipelineIndex(file.parent, name, zero, said, variant)
