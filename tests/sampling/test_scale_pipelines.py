"""Students that take the guidance scale, in diffusers' pipelines: `guidance_scale` is ours."""

import functools
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import tests.pipelines  # noqa: F401  first: it skips this file where torch is missing
from dmd2_jax.config.load import apply_overrides, plain
from dmd2_jax.run.folder import open_run
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.commands import test_export_flow
from tests.exports import FLOW_TIMES, PROMPTS, TIMES, ours, student_file
from tests.pipelines import RESOLUTION, diffusers_pipeline, tiny_pipeline
from tests.sampling.test_text_run import PROMPTS as WORDS
from tests.sampling.test_text_run import pixels, run_folder
from tests.tiny import dmd2, get_config, refused, scratch

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
        np.testing.assert_allclose(images, theirs(exported(kind), noise, scale), atol=1e-5)
    assert np.abs(made[2.0] - made[3.0]).max() > 0.05


def test_the_commands_take_the_scale_of_run_and_export(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, folder = f"--workdir={guided_run('sd15')}", f"--pipeline={exported('sd15')}"
    made = {where: pixels(where, "--guidance=3") for where in (run, folder)}
    np.testing.assert_array_equal(made[run], made[folder])
    by_default = pixels(run)
    np.testing.assert_array_equal(by_default, pixels(folder))
    np.testing.assert_array_equal(by_default, pixels(folder, "--guidance=2.5"))
    assert np.any(by_default != made[run])
    baked = tmp_path / "baked"
    assert dmd2("export", run, f"--out={baked}", "--guidance=3") == 0
    apart = made[run].astype(int) - pixels(f"--pipeline={baked}")
    assert np.abs(apart).max() <= 1
    config = json.loads((baked / "unet" / "config.json").read_text())
    assert config.get("time_cond_proj_dim") is None
    card = (exported("sd15") / "README.md").read_text()
    assert "guidance_scale=2.5" in card and "any guidance scale in 1 to 4 as an input" in card
    for where in (run, folder):
        said = refused(capsys, "sample", where, *WORDS, "--guidance=5", f"--out={tmp_path}/x.png")
        assert "guidance=5, expected a scale in 1..4" in said
    lora = refused(capsys, "export", run, f"--out={tmp_path / 'l'}", "--lora")
    assert "weights that are no adapters" in lora


def test_verify_compares_an_export_at_its_scale(tmp_path: Path) -> None:
    assert dmd2("verify", f"--pipeline={exported('sd15')}", f"--out={tmp_path / 'x.png'}") == 0


def test_flux_has_its_own_input_for_the_scale(tmp_path: Path) -> None:
    settings = {
        "model.family": "flux",
        "model.pipeline": str(tiny_pipeline("flux")),
        "model.resolution": str(RESOLUTION // 2),
        "distill.student_times": ",".join(map(str, FLOW_TIMES)),
        "distill.guidance_range": "1,4",
    }
    apply_overrides(config := get_config(), settings)
    run, out = scratch() / "run", tmp_path / "student"
    open_run(run, "distill", plain(config))
    write_safetensors(read_safetensors(student_file("flux")), run / "student.safetensors")
    assert dmd2("export", f"--workdir={run}", f"--out={out}") == 0
    call = test_export_flow.call_of((out / "README.md").read_text())
    assert call["guidance_scale"] == 2.5
    for scale in (2.5, 4.0):
        images, noise = ours(out, guidance=scale)
        call |= {"guidance_scale": scale}
        expected = test_export_flow.theirs(diffusers_pipeline(out), noise, **call)
        np.testing.assert_allclose(images, expected, atol=1e-5)
    there = pixels(f"--pipeline={out}", "--guidance=4")
    np.testing.assert_array_equal(pixels(f"--workdir={run}", "--guidance=4"), there)
    assert np.any(pixels(f"--pipeline={out}") != there)

    # The teacher was told its scale too: as one that is told it by its settings, in one call.
    def teacher(workdir: Path, *words: str) -> np.ndarray:
        return pixels(f"--workdir={workdir}", "--which=teacher", *words)

    for scale, words in (("2.5", ()), ("4", ("--guidance=4",))):
        apply_overrides(told := get_config(), settings | {"distill.guidance_range": "()"})
        apply_overrides(told, {"model.guidance": scale})
        open_run(other := scratch() / f"told_{scale}", "distill", plain(told))
        write_safetensors(read_safetensors(student_file("flux")), other / "student.safetensors")
        expected = teacher(other)
        np.testing.assert_array_equal(teacher(run, *words), expected)


def test_guidance_of_a_flux_teacher_is_diffusers_guidance_scale(tmp_path: Path) -> None:
    folder = tiny_pipeline("flux")
    call = {"height": RESOLUTION, "width": RESOLUTION, "num_inference_steps": 3}
    made = {}
    for scale in (1.0, 5.0):
        images, noise = ours(folder, guidance=scale, steps=3, shape=RESOLUTION)
        pipeline = diffusers_pipeline(folder)
        expected = test_export_flow.theirs(pipeline, noise, guidance_scale=scale, **call)
        np.testing.assert_allclose(images, expected, atol=1e-4)
        made[scale] = images
    assert np.abs(made[1.0] - made[5.0]).max() > 0.01
