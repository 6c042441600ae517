"""Pipelines that are no plain teachers: guidance is told or in the weights, or noise is added."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from dmd2_jax.commands.verify.ours import drawn_condition
from dmd2_jax.commands.verify.subject import open_subject
from dmd2_jax.config.load import apply_overrides, plain
from dmd2_jax.run.folder import open_run
from dmd2_jax.sampling.prompts import PromptSettings, pipeline_model
from tests.commands.test_flow_client import (
    LORA,
    RECIPE,
    STEPS,
    cached,
    changed,
    exported,
    get_config,
    pixels,
    student_run,
)
from tests.flow_pipelines import RESOLUTION, flow_pipeline
from tests.tiny import contents, dmd2, refused, scratch

PROMPT = "--prompt=seven"


def klein_without_guidance() -> Path:
    """A pipeline that says of itself what FLUX.2-klein-4B does, and klein-base-4B does not."""
    return changed("flux2_klein", "model_index.json", is_distilled=True)


def distil(kind: str, pipeline: Path, *more: str) -> list[object]:
    """Cache photos by a pipeline; return the words that would distil it."""
    words = cached(pipeline, f"--resolution={RESOLUTION}")
    assert dmd2(*words) == 0
    cache = next(str(word).removeprefix("--out=") for word in words if "--out=" in str(word))
    run = [f"--config={RECIPE}", f"--workdir={scratch() / 'run'}", f"--config.data.path={cache}"]
    of = [f"--config.model.family={kind}", f"--config.model.pipeline={pipeline}"]
    size = f"--config.model.resolution={RESOLUTION // 2}"
    return [
        "distill",
        "--dry_run",
        *run,
        *of,
        size,
        "--config.distill.student_steps=1",
        *LORA,
        *more,
    ]


def told_config(kind: str, folder: Path, **more: str) -> ConfigDict:
    """A config of a run whose weights are made up."""
    apply_overrides(
        config := get_config(),
        {
            "model.family": kind,
            "model.pipeline": str(folder),
            "model.resolution": str(RESOLUTION // 2),
            "distill.student_times": "1,0.5",
        }
        | more,
    )
    return config


def test_a_teacher_with_an_input_is_told_the_scale_and_called_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = flow_pipeline("flux")
    for asked, told in ((None, 3.5), (1.0, 1.0), (5.0, 5.0)):
        model = pipeline_model(folder, PromptSettings(steps=3, guidance=asked))
        assert (model.guidance, model.sampler.guidance, model.sampler.nfe) == (told, None, 3)
    few = (f"--pipeline={folder}", "--steps=2", f"--shape={RESOLUTION}")
    made = pixels(*few, "--guidance=40")
    assert np.any(made != pixels(*few))
    np.testing.assert_array_equal(pixels(*few), pixels(*few, "--guidance=3.5"))
    run = (f"--workdir={student_run('flux')}", "--which=teacher", "--steps=2")
    np.testing.assert_array_equal(pixels(*run, "--guidance=40"), made)
    for where in (f"--workdir={student_run('flux')}", f"--pipeline={exported('flux')}"):
        said = refused(capsys, "sample", where, PROMPT, "--guidance=1", f"--out={tmp_path}/x.png")
        assert "guidance=1 of a student that was trained at one scale, 3.5" in said


def test_a_negative_prompt_of_a_network_with_an_input_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = (PROMPT, "--negative=eight", "--guidance=5", f"--out={tmp_path / 'x.png'}")
    for where in (f"--pipeline={flow_pipeline('flux')}", f"--workdir={student_run('flux')}"):
        which = "--which=teacher"
        said = refused(capsys, "sample", where, which, *words)
        assert "negative='eight' of a network that takes its guidance scale as an input" in said
    assert not contents(tmp_path)


def test_distilling_guides_no_network_that_takes_its_scale(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refused(capsys, *distil("flux", flow_pipeline("flux"), "--config.distill.guidance=3.5"))
    assert "config.distill.guidance=3.5 of a network that takes its guidance scale" in said
    assert "say the scale by config.model.guidance" in said


def test_a_pipeline_that_says_it_is_distilled_is_not_guided(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, out = klein_without_guidance(), f"--out={tmp_path / 'x.png'}"
    said = refused(capsys, "sample", f"--pipeline={folder}", PROMPT, "--guidance=4", out)
    assert "guidance=4 of a pipeline whose model_index.json says is_distilled" in said
    words = distil("flux2_klein", folder)
    said = refused(capsys, *words, "--config.distill.guidance=4")
    assert "config.distill.guidance=4 of a pipeline whose model_index.json says" in said
    assert dmd2(*words) == 0
    model = pipeline_model(folder, PromptSettings(steps=3))
    assert (model.guidance, model.sampler.guidance, model.sampler.nfe) == (None, None, 3)


@pytest.mark.parametrize("given", ["guidance_augmentation:guidance=4", "sid:guidance=4"])
@pytest.mark.parametrize("kind", ["flux", "flux2_klein"])
def test_no_objective_guides_what_is_guided(
    given: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = flow_pipeline("flux") if kind == "flux" else klein_without_guidance()
    more = (f"--config.distill.objectives={given}", "--config.distill.guidance=None")
    alone = ("--config.distill.dm_weight=None",) if "sid" in given else ()
    said = refused(capsys, *distil(kind, folder, *more, *alone))
    name = given.partition(":")[0]
    assert f"guidance of config.distill.objectives' '{name}'=4 of a " in said


def test_weights_of_a_distilled_pipeline_are_not_guided_in_another_ones_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = f"--config.teacher.weights={klein_without_guidance()}"
    words = distil("flux2_klein", flow_pipeline("flux2_klein"), weights)
    said = refused(capsys, *words, "--config.distill.guidance=4")
    assert "model_index.json says is_distilled" in said
    assert dmd2(*words) == 0


def test_a_negative_prompt_without_guidance_is_refused_of_a_run_as_of_a_pipeline(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = klein_without_guidance()
    run = tmp_path / "run"
    config = told_config("flux2_klein", folder)
    open_run(run, "distill", plain(config))
    out = f"--out={tmp_path / 'x.png'}"
    for where in (f"--pipeline={folder}", f"--workdir={run}"):
        which = "--which=teacher"
        said = refused(capsys, "sample", where, which, PROMPT, "--negative=eight", out)
        assert "negative='eight' of a teacher that is sampled without guidance" in said


def test_verify_tells_a_network_the_scale_of_its_run_and_of_its_export(tmp_path: Path) -> None:
    folder = flow_pipeline("flux")
    open_run(tmp_path, "distill", plain(told_config("flux", folder, **{"model.guidance": "9"})))
    shutil.copy(
        folder / "transformer" / "diffusion_pytorch_model.safetensors",
        tmp_path / "student.safetensors",
    )
    base, subject = open_subject(str(folder)), open_subject(str(folder), str(tmp_path))
    assert (base.family.input_guidance, subject.family.input_guidance) == (3.5, 9.0)
    cond = drawn_condition(base)
    cond.pop("guidance", None)
    x_t, t = np.ones((1, *base.family.image_shape), np.float32), np.array([0.7], np.float32)
    params = base.load()
    expected = base.family.denoiser.x0(params, x_t, t, {**cond, "guidance": np.float32([9])})
    actual = subject.family.denoiser.x0(params, x_t, t, cond)
    np.testing.assert_array_equal(actual, expected)
    assert np.any(np.asarray(actual) != base.family.denoiser.x0(params, x_t, t, cond))
    student = open_subject(str(folder), str(exported("flux")))
    assert (student.times, student.guidance, student.sampler.nfe) == (STEPS["flux"], None, 1)
    own = open_subject(str(folder), str(exported("flux") / "transformer"))
    assert own.times == STEPS["flux"]


@pytest.mark.parametrize(
    "file, settings",
    [
        ("scheduler/scheduler_config.json", {"stochastic_sampling": True}),
        ("model_index.json", {"scheduler": ["diffusers", "FlowMatchLCMScheduler"]}),
    ],
)
def test_a_students_scheduler_without_times_is_no_teachers(
    file: str, settings: dict[str, object], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = changed("sd3", file, **settings)
    out = f"--out={tmp_path / 'x.png'}"
    said = refused(capsys, "sample", f"--pipeline={folder}", PROMPT, out)
    assert "adds noise between steps" in said and "--which=teacher" in said
    assert pipeline_model(folder, PromptSettings(which="teacher", steps=3)).sampler.num_noises == 1


def test_a_scale_that_no_network_reads_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(flow_pipeline("flux"), scratch() / "schnell"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"guidance_embeds": False}))
    said = refused(capsys, *distil("flux", folder, "--config.model.guidance=5"))
    assert "model.guidance=5 of a transformer that takes no guidance scale, expected 3.5" in said
