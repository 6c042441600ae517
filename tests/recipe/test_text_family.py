"""The guidance of a pipeline's teacher where none is asked for: diffusers' own default of each."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmd2_jax.families.published.pipeline import PIPELINES, read_pipeline_index, says_distilled
from dmd2_jax.recipe.text_family import default_guidance

KLEIN = "Flux2KleinPipeline"
DEFAULTS = {
    "StableDiffusionPipeline": ("guidance_scale", 7.5),
    "StableDiffusionXLPipeline": ("guidance_scale", 5.0),
    "StableDiffusion3Pipeline": ("guidance_scale", 7.0),
    "FluxPipeline": ("true_cfg_scale", 1.0),
    KLEIN: ("guidance_scale", 4.0),
    "ZImagePipeline": ("guidance_scale", 5.0),
    "QwenImagePipeline": ("true_cfg_scale", 4.0),
}
"""Of each pipeline's call in diffusers 0.42.1."""


def guidance(folder: Path, name: str, **said: Any) -> float:
    """Return the default of a pipeline whose model_index.json says this."""
    index = {part: ["of no matter", classes[0]] for part, classes in PIPELINES[name].items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name} | index | said))
    family: Any = SimpleNamespace(distilled=says_distilled(folder))  # all that is read of one
    return default_guidance(read_pipeline_index(folder), family)


@pytest.mark.parametrize("name", PIPELINES)
def test_default_guidance_is_that_of_the_pipelines_call(name: str, tmp_path: Path) -> None:
    added = 1.0 if name == "ZImagePipeline" else 0.0  # whose w is of pos + w (pos - neg)
    assert guidance(tmp_path, name) == DEFAULTS[name][1] + added


@pytest.mark.parametrize("name", PIPELINES)
def test_defaults_are_those_of_diffusers(name: str) -> None:
    pytest.importorskip("torch", reason="diffusers has its pipelines for torch alone")
    diffusers = pytest.importorskip("diffusers", reason="it is what is compared with")
    argument, expected = DEFAULTS[name]
    call = inspect.signature(getattr(diffusers, name).__call__)
    assert call.parameters[argument].default == expected


@pytest.mark.parametrize("said, expected", [(True, 1.0), (False, 4.0), (None, 4.0)])
def test_klein_that_is_distilled_has_no_guidance(
    said: bool | None, expected: float, tmp_path: Path
) -> None:
    assert guidance(tmp_path, KLEIN, is_distilled=said) == expected


def test_klein_that_is_distilled_has_no_guidance_in_diffusers() -> None:
    pytest.importorskip("torch", reason="diffusers has its pipelines for torch alone")
    diffusers = pytest.importorskip("diffusers", reason="it is what is compared with")
    parts = dict.fromkeys((*PIPELINES[KLEIN], "scheduler"))
    for distilled in (False, True):
        pipeline = diffusers.Flux2KleinPipeline(**parts, is_distilled=distilled)
        pipeline._guidance_scale = 4.0  # as its call sets it
        assert pipeline.do_classifier_free_guidance is not distilled
