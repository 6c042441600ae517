"""Students that take the guidance scale, in diffusers' pipelines: `guidance_scale` is ours."""

import functools
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import tests.pipelines  # noqa: F401  first: it skips this file where torch is missing
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.exports import PROMPTS, TIMES, ours
from tests.pipelines import diffusers_pipeline
from tests.sampling.test_text_run import run_folder
from tests.tiny import dmd2, scratch

KERNEL = "time_embedding.cond_proj.weight"


@functools.cache
def guided_run(kind: str) -> Path:
    """A run of scales 1 to 4 whose weights are made up, those of the scale too."""
    given = {"distill.guidance": "None", "distill.guidance_range": "1,4"}
    folder = run_folder(kind, **given)
    file = folder / "student.safetensors"
    tensors = read_safetensors(file)
    features = tensors["time_embedding.linear_1.weight"].shape[1]
    random = np.random.RandomState(1)
    tensors[KERNEL] = 0.3 * random.standard_normal((features, 256)).astype(np.float32)
    write_safetensors(tensors, file)
    return folder


@functools.cache
def exported(kind: str, *more: str) -> Path:
    out = scratch() / "student"
    assert dmd2("export", f"--workdir={guided_run(kind)}", f"--out={out}", *more) == 0
    return out


def theirs(folder: Path, noise: np.ndarray, scale: float) -> np.ndarray:
    """Sample by diffusers from given noises; see `tests.pipelines.lcm_images`."""
    import torch

    noises = iter(torch.from_numpy(x.copy()) for x in noise.transpose(0, 1, 4, 2, 3))
    where = "diffusers.schedulers.scheduling_lcm.randn_tensor"
    with mock.patch(where, side_effect=lambda *_, **__: next(noises)):
        return (
            diffusers_pipeline(folder)(
                list(PROMPTS),
                guidance_scale=scale,
                latents=next(noises),
                output_type="np",
                timesteps=list(TIMES),
            )
        ).images


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_diffusers_guidance_scale_makes_our_images(kind: str) -> None:
    made = {}
    for scale in (2.0, 3.0):
        images, noise = ours(exported(kind), guidance=scale)
        made[scale] = images
        np.testing.assert_allclose(images, theirs(exported(kind), noise, scale), atol=2e-3)
    assert np.abs(made[2.0] - made[3.0]).max() > 0.05
