"""What a family of prompts offers beside `recipe.open.Family`, and which family a pipeline is of.

A folder of dmd2_jax/families whose networks are conditioned on prompts is found here by what its
module declares (`TextFamilyModule`); no other line names one.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dmd2_jax import families
from dmd2_jax.config import plugins
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.published.pipeline import PipelineIndex, read_pipeline_index
from dmd2_jax.recipe.guidance import input_scale
from dmd2_jax.recipe.open import Family
from dmd2_jax.runtime.places import path_of

__all__ = [
    "TextFamily",
    "TextFamilyModule",
    "base_pipeline",
    "default_guidance",
    "pipeline_family",
    "text_family",
]


@runtime_checkable
class TextFamily(Family, Protocol):
    """A family whose conditions are those of prompts, in the latents of an autoencoder.

    Attributes:
      model: the network with its published config and names.
    """

    model: PublishedModel

    @property
    def image_tokens(self) -> int:
        """How many tokens its network makes of an image; a flow's shift may follow it."""

    def with_null(self, null: Mapping[str, Any]) -> "TextFamily":
        """Return the family whose guidance goes away from this condition by default."""


@runtime_checkable
class TextFamilyModule(Protocol):
    """What the module of such a family declares.

    Attributes:
      PIPELINES: classes of model_index.json -> the guidance that they have by default.
    """

    PIPELINES: Mapping[str, float]

    def open_folder(
        self, folder: str | Path, *, dtype: str = "float32", variant: str = ""
    ) -> TextFamily:
        """Build the network of a pipeline's folder, reading no weights."""


def pipeline_family(
    index: PipelineIndex, *, dtype: str = "float32", resolution: Size = 0
) -> TextFamily:
    """Build the network of a pipeline, reading no weights.

    Args:
      index: what its model_index.json says.
      dtype: of the computation.
      resolution: height and width of the latents; 0: those which the network was made for.

    Raises:
      Refused: if a part is missing, damaged, or of a class that is not built here.
    """
    side: dict[str, Any] = {"resolution": resolution} if resolution else {}
    return _module_of(index).open_folder(index.folder, dtype=dtype, variant=index.variant, **side)


def default_guidance(index: PipelineIndex, family: Family) -> float:
    """Return the guidance that diffusers gives a pipeline's teacher where none is asked for.

    Args:
      index: of the pipeline.
      family: its network; of one that takes a scale as an input it is that, and of one that is
        distilled 1, which is none.
    """
    if (told := input_scale(family)) is not None:
        return told
    if getattr(family, "distilled", False):
        return 1.0
    return _module_of(index).PIPELINES[index.class_name]


def text_family(family: Family) -> TextFamily | None:
    """Return a family as one of prompts; None: it is of classes, if of anything."""
    return family if isinstance(family, TextFamily) else None


def base_pipeline(pipeline: str, family: TextFamily) -> PipelineIndex:
    """Open the index of the pipeline that has everything but a run's network.

    Args:
      pipeline: its folder.
      family: the network.

    Raises:
      Refused: if it is no pipeline's folder, or its own network is another one.
    """
    if not path_of(pipeline or "-").expanduser().is_dir():
        raise Refused(
            f"the run's pipeline {pipeline!r} is no folder, expected that of a diffusers pipeline, "
            "whose text encoders and autoencoder are used; give the pipeline's folder."
        )
    index = read_pipeline_index(pipeline, getattr(family, "variant", ""))
    if pipeline_family(index).tensor_shapes() != family.tensor_shapes():
        raise Refused(
            f"{pipeline}/{index.network} is another network than the run's, expected the one that "
            "it was made from; give the folder of that pipeline."
        )
    return index


def _module_of(index: PipelineIndex) -> TextFamilyModule:
    for name in plugins.available(families.__name__, packages=True):
        module = importlib.import_module(f"{families.__name__}.{name}")
        if isinstance(module, TextFamilyModule) and index.class_name in module.PIPELINES:
            return module
    raise Refused(
        f"{index.folder} is of class {index.class_name!r}, expected one that a folder of "
        "dmd2_jax/families names among its PIPELINES; use another pipeline."
    )
