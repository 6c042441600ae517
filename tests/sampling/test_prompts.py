"""`dmd2 sample --prompt`: images equal diffusers' own, seeds are honoured, and what is refused."""

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.data import to_uint8
from dmd2_jax.data.reading.captions import open_captions
from dmd2_jax.evaluate.clip import captions_of
from dmd2_jax.evaluate.measured import FileImages
from dmd2_jax.metrics.features.images import open_images
from dmd2_jax.pictures.grids import montage
from dmd2_jax.sampling.images import Model
from dmd2_jax.sampling.prompts import PromptSettings, pipeline_model
from dmd2_jax.sampling.samplers import sample_noise
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.pipelines import CAPTIONS, diffusers_pipeline, drawn, lcm_images, tiny_pipeline
from tests.tiny import dmd2, refused

PROMPTS = (CAPTIONS[7], CAPTIONS[12])
NEGATIVE = "one, two"
SHORT = "--steps=4"
KINDS = ["sd15", "sdxl"]


@functools.cache
def model(kind: str) -> Model:
    return pipeline_model(tiny_pipeline(kind), PromptSettings(steps=4))


@functools.cache
def ours(kind: str, negative: str | None = None) -> np.ndarray:
    return drawn(model(kind), PROMPTS, negative=negative)


@functools.cache
def torch_pipeline(kind: str):
    """The pipeline in diffusers, with its DDIMScheduler."""
    import diffusers

    pipe = diffusers_pipeline(tiny_pipeline(kind))
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def theirs(kind: str, negative: str | None, guidance: float) -> np.ndarray:
    """Images of diffusers' pipeline from the noise of `ours`."""
    import torch

    shape = model(kind).family.image_shape
    noise = np.asarray(sample_noise(0, np.arange(2), 1, shape))[0].transpose(0, 3, 1, 2)
    return torch_pipeline(kind)(
        list(PROMPTS),
        negative_prompt=None if negative is None else [negative] * 2,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=torch.from_numpy(noise.copy()),
        output_type="np",
    ).images


def unit(images: np.ndarray) -> np.ndarray:
    return np.clip(images / 2 + 0.5, 0, 1)


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))[8:-8, 8:-8]


@pytest.mark.parametrize("negative", [None, "", NEGATIVE])
@pytest.mark.parametrize("kind, guidance", [("sd15", 7.5), ("sdxl", 5.0)])
def test_teacher_images_are_those_of_diffusers(
    kind: str, guidance: float, negative: str | None
) -> None:
    expected = theirs(kind, negative, guidance)
    assert np.abs(unit(ours(kind, negative)) - expected).max() <= 2e-3
    assert expected.std() > 0.05 and np.abs(expected[0] - expected[1]).max() > 0.05


def test_sample_writes_the_grid_of_these_images(tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    words = [f"--prompt={text}" for text in PROMPTS]
    line = ["sample", f"--pipeline={tiny_pipeline('sd15')}", f"--out={out}", *words, SHORT]
    assert dmd2(*line, f"--negative={NEGATIVE}") == 0
    np.testing.assert_array_equal(pixels(out), montage(ours("sd15", NEGATIVE), 1, 2))


def test_sample_reads_prompts_of_a_file_and_draws_several_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "p.jsonl", tmp_path / "x.png"
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS))
    line = ["sample", f"--pipeline={tiny_pipeline('sd15')}", f"--prompts={file}", f"--out={out}"]
    assert dmd2(*line, SHORT, "--num=2", "--batch_size=2") == 0
    assert "2 images of each prompt" in capsys.readouterr().out
    images = drawn(model("sd15"), PROMPTS, each=2, batch_size=2)
    np.testing.assert_array_equal(pixels(out), montage(images, 2, 2))
    # A row is a prompt; its images differ by their noise alone.
    assert np.abs(images[0] - images[1]).max() > 0.05


def test_single_images_of_prompts_have_their_captions_and_numbers(tmp_path: Path) -> None:
    out = tmp_path / "samples.zip"
    line = ["sample", f"--pipeline={tiny_pipeline('sd15')}", f"--out={out}", SHORT, "--num=2"]
    assert dmd2(*line, *(f"--prompt={text}" for text in PROMPTS), "--batch_size=2") == 0
    captioned = open_captions(out)
    assert captioned.captions == tuple(text for text in PROMPTS for _ in range(2))
    source = open_images(out)
    batch = source.examples(np.arange(4))
    assert batch["label"].tolist() == [0, 0, 1, 1]
    expected = np.asarray(to_uint8(drawn(model("sd15"), PROMPTS, each=2, batch_size=2)))
    assert np.abs(batch["image"].astype(int) - expected).max() <= 1  # on all devices, not on one
    assert captions_of(str(out), FileImages(str(out), 0, 0)) == list(captioned.captions)


def test_image_depends_on_seed_number_and_prompt_alone() -> None:
    images = drawn(model("sd15"), (PROMPTS[0], CAPTIONS[0]))
    np.testing.assert_allclose(images[0], ours("sd15")[0], atol=1e-5)
    assert np.abs(images[1] - ours("sd15")[1]).max() > 0.05
    other = drawn(model("sd15"), PROMPTS, seed=1)
    assert np.abs(ours("sd15") - other).max(axis=(1, 2, 3)).min() > 0.05


def test_pipeline_with_an_lcm_scheduler_is_sampled_as_a_student(tmp_path: Path) -> None:
    import diffusers

    pipe = diffusers_pipeline(tiny_pipeline("sdxl"))
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "lcm")
    teacher = pipeline_model(tmp_path / "lcm", PromptSettings(which="teacher", steps=3))
    assert teacher.sampler.nfe == 6
    images = drawn(pipeline_model(tmp_path / "lcm", PromptSettings()), PROMPTS)
    noise = np.asarray(sample_noise(0, np.arange(2), 4, teacher.family.image_shape))
    expected = lcm_images(pipe, PROMPTS, noise, num_inference_steps=4)
    assert np.abs(unit(images) - expected).max() <= 2e-3


def test_sample_cuts_a_prompt_only_when_it_is_told_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["sample", f"--pipeline={tiny_pipeline('sd15')}", f"--out={tmp_path / 'x.png'}", SHORT]
    line += [f"--prompt={'seven ' * 90}", "--prompt=two"]
    assert "tokens, expected at most 77: 'seven seven" in refused(capsys, *line)
    assert dmd2(*line, "--cut_prompts") == 0
    warned = [r.getMessage() for r in caplog.records if "tokens" in r.getMessage()]
    assert len(warned) == 1 and "prompts have more than 77 tokens and lose their ends" in warned[0]


def test_sample_names_the_remedy_where_the_autoencoder_overflows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = Path(shutil.copytree(tiny_pipeline("sdxl") / "vae", tmp_path / "vae"))
    file = vae / "diffusion_pytorch_model.safetensors"
    tensors = dict(read_safetensors(file))
    name = "decoder.conv_in.weight"
    write_safetensors(tensors | {name: tensors[name] * 1e6}, file)
    line = ["sample", f"--pipeline={tiny_pipeline('sdxl')}", SHORT, f"--vae={vae}"]
    line += [f"--prompt={text}" for text in PROMPTS] + [f"--out={tmp_path / 'x.png'}"]
    said = refused(capsys, *line, "--vae_dtype=float16")
    assert re.search(
        r"images of image 0 of \S+ \(a handwritten seven\) are not finite when .*float16", said
    )
    assert "run it in float32 (--vae_dtype=float32)" in said
    assert not (tmp_path / "x.png").exists()


PROMPT = "--prompt=a"


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "expected one of them; give --prompt="),
        ((PROMPT, "--prompts=p.txt"), "expected one of them; give --prompt="),
        (("--prompts=absent.txt",), "absent.txt does not exist"),
        ((PROMPT, "--num=0"), "--num=0, expected 1 or more"),
        ((PROMPT, "--steps=0"), "steps=0, expected 1 or more"),
        ((PROMPT, "--steps=1001"), "num_steps=1001 must be in 1..1000"),
        ((PROMPT, "--batch_size=0"), "--batch_size=0, expected 1 or more"),
        ((PROMPT, "--seed=-1"), "--seed=-1, expected a whole number in 0..4294967295"),
        ((PROMPT, "--guidance=-1"), "guidance=-1.0, expected 0 or more"),
        ((PROMPT, "--guidance=nan"), "guidance=nan, expected 0 or more"),
        ((PROMPT, "--guidance=0"), "guidance=0, which is u + 0 (c - u): the teacher without its"),
        ((PROMPT, "--guidance=1", "--negative=b"), "negative='b' with guidance=1"),
        ((PROMPT, "--which=student"), "which=student of a pipeline with DDIMScheduler"),
        ((PROMPT, "--classes=1"), "--classes given with --pipeline="),
        ((PROMPT, "--ema=0.9"), "--ema given with --pipeline="),
        ((PROMPT, "--weights=x"), "--weights given with --pipeline="),
        ((PROMPT, "--checkpoint=1"), "--checkpoint given with --pipeline="),
        ((PROMPT, "--vae=absent"), "config.json cannot be read"),
        ((PROMPT, "--out=absent/x.png"), "lies in no folder"),
    ],
)
def test_sample_refuses(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "sample", f"--pipeline={tiny_pipeline('sd15')}", *words)
    assert message in said


@pytest.mark.parametrize(
    "part, message",
    [("scheduler", "scheduler_config.json cannot be read"), ("vae", "has no part vae/")],
)
def test_sample_refuses_a_pipeline_with_a_missing_part(
    part: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline("sd15"), tmp_path / "sd15"))
    shutil.rmtree(folder / part)
    assert message in refused(capsys, "sample", f"--pipeline={folder}", PROMPT)


@pytest.mark.parametrize(
    "part, key, value, message",
    [
        ("unet", "_class_name", "UNet3DConditionModel", "config.json is of class 'UNet3DCond"),
        ("vae", "_class_name", "VQModel", "config.json is of class 'VQModel', expected"),
        ("scheduler", "prediction_type", "flow_prediction", "prediction_type='flow_prediction'"),
        ("unet", "sample_size", None, "set sample_size in the U-Net's config.json"),
        ("unet", "sample_size", [8, 16], "the latents' side is [8, 16], expected one number"),
    ],
)
def test_sample_refuses_what_is_not_built_here(
    part: str,
    key: str,
    value: str | list[int] | None,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline("sd15"), tmp_path / "sd15"))
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    file = folder / part / name
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert message in refused(capsys, "sample", f"--pipeline={folder}", PROMPT)


def test_sample_of_nothing_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "sample")
    assert "got neither --workdir nor --pipeline, expected one of them" in said
