"""diffusers' DiTPipeline as the teacher of a recipe, all the way: opened there in the end."""

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax import families
from dmd2_jax.families import sit
from dmd2_jax.sampling.samplers import few_step_sampler
from dmd2_jax.text2image.pipeline import decode, open_autoencoder
from tests.commands.test_flow_client import LORA, NO_GAN, RECIPE
from tests.data.images import picture, png, write_folder
from tests.pipelines import RESOLUTION, dit
from tests.tiny import dmd2, refused, scratch

SIDE, CLASSES = RESOLUTION, 3
"""Of the images, of which latents have half; the pipeline's classes are not ImageNet's."""
TIMES = (999, 499)


@functools.cache
def pipeline() -> Path:
    """A tiny pipeline of odd sizes, made by diffusers."""
    import torch

    torch.manual_seed(3)
    made = dit(CLASSES, layers=2)
    with torch.no_grad():
        for parameter in made.transformer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made.save_pretrained(folder := scratch() / "dit")
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {"0": "cat", "1": "dog", "2": "fox"}  # as the published folders have it
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@functools.cache
def cache() -> Path:
    files = {
        f"{name}/{i}.png": png(picture(7 * i + number, SIDE))
        for number, name in enumerate("abc")
        for i in range(4)
    }
    images, out = write_folder(scratch() / "images", files), scratch() / "cache"
    words = [f"--vae={pipeline() / 'vae'}", f"--images={images}", f"--resolution={SIDE}"]
    assert dmd2("cache", *words, f"--out={out}") == 0
    return out


def words(run: Path, *more: str) -> list[object]:
    of = ["--config.model.family=sit", f"--config.model.pipeline={pipeline()}"]
    of += [f"--config.model.resolution={SIDE // 2}", f"--config.data.path={cache()}"]
    of += ["--config.distill.denoising_weight=eps", "--config.distill.critic_times=uniform"]
    times = f"--config.distill.student_times={','.join(map(str, TIMES))}"
    return ["distill", f"--config={RECIPE}", f"--workdir={run}", *of, times, *more]


@functools.cache
def run(*more: str) -> Path:
    folder = scratch() / "run"
    assert dmd2(*words(folder, "--config.distill.guidance=2", *more)) == 0
    return folder


@pytest.mark.parametrize("more", [(), (*LORA, "--config.distill.lora_critic=True")])
def test_a_distilled_dit_makes_our_images_in_diffusers(
    more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    out = scratch() / "student"
    assert dmd2("export", f"--workdir={run(*more)}", f"--out={out}") == 0
    assert "DiTPipeline with LCMScheduler" in capsys.readouterr().out
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    scope: dict[str, object] = {}
    numbers = code.replace("FOLDER", repr(str(out))).replace("(0)", "(4)")
    numbers = numbers.replace("pipe([1], ", "pipe(pipe.get_label_ids(['fox']), output_type='np', ")
    exec(compile(numbers, "README.md", "exec"), scope)

    torch.manual_seed(4)
    shape = (1, 6, SIDE // 2, SIDE // 2)
    noise = np.stack([torch.randn(shape).numpy().transpose(0, 2, 3, 1) for _ in TIMES])
    family, params = families.read(out)
    latents = few_step_sampler(family.denoiser, TIMES).run(params, noise, np.array([2], np.int32))
    decoder = open_autoencoder(out / "vae")
    ours = np.asarray(decode(decoder.vae, decoder.vae_params, latents))
    assert np.abs(np.clip(ours / 2 + 0.5, 0, 1) - scope["images"]).max() <= 1e-5
    assert scope["images"].std() > 0.02

    assert dmd2("verify", f"--pipeline={out}", f"--out={scratch() / 'x.png'}") == 0


def test_its_images_are_decoded_by_the_pipelines_autoencoder(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    assert dmd2("sample", f"--workdir={run()}", "--classes=2", "--num=2", f"--out={file}") == 0
    assert Image.open(file).mode == "RGB" and Image.open(file).size[1] >= SIDE


@pytest.mark.parametrize(
    "more, message",
    [
        ("--config.model.width=128", "model.width=128 beside model.pipeline="),
        ("--config.model.prediction=eps", "model.prediction='eps' beside model.pipeline="),
        ("--config.model.resolution=4", "set it to 8, or write a cache of that size"),
        ("--config.model.pipeline=nowhere", "model.pipeline='nowhere' is no folder"),
    ],
)
def test_settings_that_the_folder_has_itself_are_refused(
    more: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in refused(capsys, *words(tmp_path / "run", more, *NO_GAN), "--dry_run")


@pytest.mark.parametrize("key, value", [("resolution", 4), ("image_channels", 3)])
def test_data_of_other_sizes_than_the_folders_are_refused(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"model\.{key}={value} with model\.pipeline="):
        sit.build({"pipeline": str(pipeline()), key: value})


def test_latents_of_another_scale_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = shutil.copytree(pipeline(), tmp_path / "other")
    config = other / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.2}))
    more = (f"--config.model.pipeline={other}", *NO_GAN)
    said = refused(capsys, *words(tmp_path / "run", *more), "--dry_run")
    assert "has latents of scaling_factor 0.7" in said and "expected scaling_factor 0.2" in said


def test_classes_of_other_data_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = {f"{name}/0.png": png(picture(n, SIDE)) for n, name in enumerate("ab")}
    images, out = write_folder(tmp_path / "images", files), tmp_path / "cache"
    made = [f"--vae={pipeline() / 'vae'}", f"--images={images}", f"--resolution={SIDE}"]
    assert dmd2("cache", *made, f"--out={out}") == 0
    said = refused(capsys, *words(tmp_path / "run"), f"--config.data.path={out}", "--dry_run")
    assert "num_classes" in said and json.dumps(2) in said and "3" in said
