"""`dmd2 export` of flow students: the images of diffusers' own SD 3 and FLUX.1 pipelines are ours."""

import ast
import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from dmd2_jax.config.load import apply_overrides, plain
from dmd2_jax.families.flux.transformer import pack
from dmd2_jax.families.published.scheduler import recorded_times
from dmd2_jax.run.folder import open_run
from dmd2_jax.sampling.prompts import PromptSettings, pipeline_model
from dmd2_jax.sampling.samplers import sample_noise
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.exports import FLOW_TIMES, student_file, words
from tests.pipelines import CAPTIONS, RESOLUTION, diffusers_pipeline, drawn, tiny_pipeline
from tests.tiny import contents, dmd2, get_config, refused, scratch

KINDS = ("sd3", "flux")
PROMPTS = (CAPTIONS[3], CAPTIONS[18])
SCHEDULERS = ("flow_match_euler_discrete", "flow_match_lcm")


@functools.cache
def run_folder(kind: str, steps: int = 4) -> Path:
    """What distilling leaves: the config, and weights made up; do not change it."""
    config = get_config()
    settings = {
        "model.family": kind,
        "model.pipeline": str(tiny_pipeline(kind)),
        "model.resolution": str(RESOLUTION // 2),
        "distill.student_times": ",".join(map(str, FLOW_TIMES[:steps])),
    }
    if kind == "flux":
        settings["model.guidance"] = "2.25"
    apply_overrides(config, settings)
    folder = scratch() / "run"
    open_run(folder, "distill", plain(config))
    write_safetensors(read_safetensors(student_file(kind)), folder / "student.safetensors")
    return folder


@functools.cache
def exported(kind: str, steps: int, *more: str) -> Path:
    """A student's pipeline; do not change it."""
    out = scratch() / "student"
    assert dmd2("export", f"--workdir={run_folder(kind, steps)}", f"--out={out}", *more) == 0
    return out


def ours(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images of our sampler in [0, 1], and their noises [s, b, h, w, c]."""
    model = pipeline_model(folder, PromptSettings())
    images = drawn(model, PROMPTS)
    noises, shape = model.sampler.num_noises, model.family.image_shape
    noise = sample_noise(0, np.arange(len(PROMPTS)), noises, shape)
    return np.clip(images / 2 + 0.5, 0, 1), np.asarray(noise)


@contextmanager
def drawing(noises: list[Any]) -> Iterator[None]:
    """Let diffusers' schedulers of flows draw these, one a step and one more at the end."""
    left = iter(noises)
    with ExitStack() as stack:
        for name in SCHEDULERS:
            where = f"diffusers.schedulers.scheduling_{name}.randn_tensor"
            draw = mock.Mock(side_effect=lambda shape, **_: next(left, 0.0))
            stack.enter_context(mock.patch(where, draw))
        yield


def theirs(pipeline: Any, noise: np.ndarray, **call: Any) -> np.ndarray:
    """Images of diffusers' pipeline from the same noises, in [0, 1]."""
    import torch

    if "Flux" in type(pipeline).__name__:
        packed = [np.asarray(pack(x)) for x in noise]
        drawn_ = [torch.from_numpy(x.reshape(len(x), -1, x.shape[-1]).copy()) for x in packed]
    else:
        drawn_ = [torch.from_numpy(x.copy()) for x in noise.transpose(0, 1, 4, 2, 3)]
    with drawing(drawn_[1:]):
        return pipeline(
            list(PROMPTS),
            latents=drawn_[0],
            output_type="np",
            **call,
        ).images


def call_of(card: str) -> dict[str, Any]:
    """The arguments of the call that a README.md has, but the prompt."""
    line = next(line for line in card.splitlines() if line.startswith("image = pipe("))
    call = ast.parse(line.removeprefix("image = ").removesuffix(".images[0]"), mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(given.arg): ast.literal_eval(given.value) for given in call.keywords}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_call_of_the_readme_makes_our_images_in_diffusers(kind: str, steps: int) -> None:
    folder = exported(kind, steps)
    images, noise = ours(folder)
    assert len(noise) == steps
    call = call_of((folder / "README.md").read_text())
    assert call["sigmas"] == list(FLOW_TIMES[:steps])
    assert call["height"] == call["width"] == RESOLUTION
    assert call["guidance_scale"] == (2.25 if kind == "flux" else 0)
    expected = theirs(diffusers_pipeline(folder), noise, **call)
    print("largest", kind, steps, np.abs(images - expected).max())
    assert np.abs(images - expected).max() <= 1e-5
    assert expected.std() > 0.05 and np.abs(expected[0] - expected[1]).max() > 0.01
