"""`dmd2 export --single_file`: the original names, diffusers' own loader, and back."""

import functools
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.weights.state_dict import read_safetensors
from tests.exports import student_file, words
from tests.pipelines import diffusers_pipeline, tiny_pipeline
from tests.sampling.test_zero_snr import pipeline as v_zero_snr
from tests.tiny import dmd2, refused, scratch


@functools.cache
def exported(kind: str) -> Path:
    out = scratch() / "single"
    assert dmd2(*words(kind, out, "--single_file")) == 0
    return out / "checkpoint.safetensors"


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_single_file_is_read_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    assert dmd2(*words(kind, tmp_path / "s", f"--weights={exported(kind)}")) == 0
    got = read_safetensors(tmp_path / "s" / "unet" / "diffusion_pytorch_model.safetensors")
    expected = read_safetensors(student_file(kind))
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(got[name], tensor)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_diffusers_reads_every_part_of_a_single_file(kind: str) -> None:
    import diffusers

    base = diffusers_pipeline(tiny_pipeline(kind))
    pipe = type(base).from_single_file(
        str(exported(kind)), config=str(tiny_pipeline(kind)), local_files_only=True
    )
    assert isinstance(pipe, diffusers.StableDiffusionPipeline) == (kind == "sd15")
    parts = {"vae": base.vae, "text_encoder": base.text_encoder}
    if kind == "sdxl":
        parts["text_encoder_2"] = base.text_encoder_2
    for name, part in parts.items():
        got, expected = getattr(pipe, name).state_dict(), part.state_dict()
        assert got.keys() == expected.keys()
        assert all(bool((got[key] == expected[key]).all()) for key in expected), name
    unet = pipe.unet.state_dict()
    for name, tensor in read_safetensors(student_file(kind)).items():
        np.testing.assert_array_equal(unet[name].numpy(), tensor)


def test_single_file_says_what_it_predicts(tmp_path: Path) -> None:
    line = words("sdxl", tmp_path / "v", "--single_file", f"--pipeline={v_zero_snr()}")
    assert dmd2(*line) == 0
    tensors = read_safetensors(tmp_path / "v" / "checkpoint.safetensors")
    assert tensors["v_pred"].size == tensors["ztsnr"].size == 0
    assert not {"v_pred", "ztsnr"} & set(read_safetensors(exported("sdxl")))
    card = (tmp_path / "v" / "README.md").read_text()
    assert "It predicts v, with zero terminal SNR" in card and "v_prediction, zsnr on" in card


def test_readme_names_programs_samplers_and_steps(tmp_path: Path) -> None:
    card = (exported("sdxl").parent / "README.md").read_text()
    assert 'from_single_file("checkpoint.safetensors"' in card
    assert "ComfyUI: sampler lcm, scheduler simple, 4 steps, cfg 1.0" in card
    assert dmd2(*words("sdxl", tmp_path / "s", "--single_file", "--times=399")) == 0
    card = (tmp_path / "s" / "README.md").read_text()
    # sigma / alpha of 399 in the schedule of SDXL
    assert "No scheduler of theirs takes these times (1 steps of simple: 999)" in card
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    squared = np.cumprod(1 - beta)[399]
    assert f"the sigmas {np.sqrt((1 - squared) / squared):.4f}, 0 and cfg 1.0" in card


def test_single_file_of_adapters_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words("sdxl", tmp_path / "s", "--single_file", "--lora=kohya")
    assert "--lora with --single_file" in refused(capsys, *line)
