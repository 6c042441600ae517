"""Several shapes in one run of Stable Diffusion, SDXL and SD 3: what `test_shapes_client` does with
FLUX.1, with the conditions and times of these, and sampled by diffusers itself.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

import tests.pipelines  # noqa: F401  first: it skips this file where torch is missing
from dmd2_jax.families.published.scheduler import recorded_times
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.training.shapes import shape_of_cycle
from tests.commands import test_flow_client as flow
from tests.commands import test_text_client as text
from tests.commands.test_export_flow import theirs
from tests.data.images import png, write_folder
from tests.exports import PROMPTS, ours
from tests.pipelines import diffusers_pipeline, lcm_images, photo, tiny_pipeline
from tests.tiny import dmd2, scratch

SHAPES = "16x16,16x24"
"""Of the images; their latents are 8x8 and 8x12."""

LATENTS = "--config.model.resolution=8x8,8x12"
FLOW = ("--config.model.family=sd3", "--config.distill.student_steps=2")


@functools.cache
def pictures() -> Path:
    """Eight captioned images, every other one wide."""
    files = {}
    for i in range(8):
        pixels = photo(i)
        wide = np.concatenate([pixels, pixels[:, ::-1]], axis=1)[:, : 3 * len(pixels) // 2]
        files |= {f"{i}.png": png(wide if i % 2 else pixels), f"{i}.txt": PROMPTS[i % 2].encode()}
    return write_folder(scratch() / "pictures", files)


@functools.cache
def exported(kind: str) -> Path:
    """A student of two cycles, one of each shape, and its export."""
    cache, run, out = scratch() / "cache", scratch() / "run", scratch() / "student"
    pipeline = tiny_pipeline(kind)
    line = [f"--pipeline={pipeline}", f"--images={pictures()}", f"--out={cache}"]
    assert dmd2("cache", *line, f"--resolution={SHAPES}", "--enlarge") == 0
    recipe = (flow if kind == "sd3" else text).RECIPE
    line = [f"--config={recipe}", f"--workdir={run}", f"--config.data.path={cache}", LATENTS]
    line += [f"--config.model.pipeline={pipeline}", *(FLOW if kind == "sd3" else ())]
    assert dmd2("distill", *line) == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert {shape_of_cycle((4, 4), 0, row["step"] - 1)[0] for row in rows} == {0, 1}
    assert all(np.isfinite(row["generator_loss"] + row["critic_loss"]) for row in rows)
    assert dmd2("export", f"--workdir={run}", f"--out={out}") == 0
    return out


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_diffusers_draws_both_shapes_as_we_do(kind: str) -> None:
    pipe = diffusers_pipeline(exported(kind))
    for height, width in ((16, 16), (16, 24)):
        images, noise = ours(exported(kind), shape=(height, width))
        size = {"height": height, "width": width, "timesteps": list(text.TIMES)}
        expected = lcm_images(pipe, PROMPTS, noise, **size)
        assert images.shape == expected.shape == (2, height, width, 3) and expected.std() > 0.05
        assert np.abs(images - expected).max() <= 2e-3


def test_diffusers_draws_both_shapes_of_sd3_as_we_do() -> None:
    out = exported("sd3")
    pipe = diffusers_pipeline(out)
    settings = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    for height, width in ((16, 16), (16, 24)):
        images, noise = ours(out, shape=(height, width))
        times = recorded_times(settings, (height // 2, width // 2))
        call = {"height": height, "width": width, "sigmas": list(times), "guidance_scale": 0}
        expected = theirs(pipe, noise, **call)
        assert images.shape == expected.shape == (2, height, width, 3) and expected.std() > 0.05
        assert np.abs(images - expected).max() <= 1e-5
