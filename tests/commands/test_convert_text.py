"""`dmd2 convert` of weights that are conditioned on prompts."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.weights.weight_files import read_weights, write_weights
from tests.pipelines import tiny_pipeline
from tests.sampling.test_text_run import run_folder
from tests.tiny import RECIPE, dmd2


def tensors_of(path: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in read_weights(path).tensors.items()}


def recipe_words(kind: str) -> list[str]:
    settings = {
        "model.family": "stable_diffusion",
        "model.pipeline": tiny_pipeline(kind),
        "distill.student_times": 999,
    }
    return [f"--config={RECIPE}", *(f"--config.{key}={value}" for key, value in settings.items())]


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_convert_of_a_unet_goes_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    first = tiny_pipeline(kind) / "unet" / "diffusion_pytorch_model.safetensors"
    files = [first, tmp_path / "a.bin", tmp_path / "b.safetensors"]
    for source, target in itertools.pairwise(files):
        assert dmd2("convert", source, target, *recipe_words(kind)) == 0
        assert "equal bit for bit (float32, mean |x_0| " in capsys.readouterr().out
    assert tensors_of(files[1]) == tensors_of(files[2]) == tensors_of(first)


def test_convert_takes_one_unet_of_a_file_of_two(tmp_path: Path) -> None:
    unet = tiny_pipeline("sd15") / "unet" / "diffusion_pytorch_model.safetensors"
    tensors, source = read_weights(unet).tensors, tmp_path / "guidance.bin"
    both = {f"fake_unet.{name}": tensor for name, tensor in tensors.items()}
    both |= {f"real_unet.{name}": np.zeros_like(tensor) for name, tensor in tensors.items()}
    write_weights(both, source)
    words = ("convert", source, tmp_path / "x.safetensors", "--prefix=fake_unet.")
    assert dmd2(*words, *recipe_words("sd15")) == 0
    assert tensors_of(tmp_path / "x.safetensors") == tensors_of(unet)


def test_convert_of_a_text_run_writes_what_the_run_trained(tmp_path: Path) -> None:
    out = tmp_path / "x.bin"
    assert dmd2("convert", run_folder(), out, "--ema=0.9") == 0
    assert tensors_of(out) == tensors_of(run_folder() / "student_ema_0.9.safetensors")
