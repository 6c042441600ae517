"""Weights as people have them come in through the commands: the same tensors, or a refusal."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.families import stable_diffusion
from dmd2_jax.families.stable_diffusion.original_names import unet_names
from dmd2_jax.recipe.weights_file import weights_file
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.exports import student_file, words
from tests.pipelines import tiny_pipeline
from tests.sampling.test_zero_snr import pipeline as v_zero_snr
from tests.tiny import dmd2, refused

STEM = "diffusion_pytorch_model"


@functools.cache
def tensors(kind: str = "sd15") -> dict[str, np.ndarray]:
    return read_safetensors(student_file(kind))


def torch_tensors() -> dict:
    import torch

    return {name: torch.from_numpy(tensor.copy()) for name, tensor in tensors().items()}


@functools.cache
def family(kind: str) -> stable_diffusion.StableDiffusionFamily:
    return stable_diffusion.open_folder(tiny_pipeline(kind))


def loaded(weights: Path, kind: str = "sd15") -> dict[str, np.ndarray]:
    """Return the U-Net that every command takes from a file of weights, or a folder."""
    found = weights_file(str(weights), "teacher.safetensors")
    return family(kind).to_state_dict(family(kind).load(found))


def exported(tmp_path: Path, weights: Path, kind: str = "sd15") -> dict[str, np.ndarray]:
    """Return the U-Net that `dmd2 export` makes of a file of weights."""
    assert dmd2(*words(kind, tmp_path / "s", f"--weights={weights}")) == 0
    return read_safetensors(tmp_path / "s" / "unet" / f"{STEM}.safetensors")


def assert_equal(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(got[name], tensor, err_msg=name)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_float8_is_the_number_that_torch_reads(kind: str, suffix: str, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    small = {name: t.to(getattr(torch, kind)) for name, t in torch_tensors().items()}
    file = tmp_path / f"x.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(small, file)
    expected = {name: tensor.to(torch.float32).numpy() for name, tensor in small.items()}
    assert_equal(loaded(file), expected)


def test_float8_with_factors_beside_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import safetensors.torch
    import torch

    small = {name: t.to(torch.float8_e4m3fn) for name, t in torch_tensors().items()}
    small |= {"conv_in.scale_weight": torch.ones(1)}
    safetensors.torch.save_file(small, tmp_path / "x.safetensors")
    line = words("sd15", tmp_path / "s", f"--weights={tmp_path / 'x.safetensors'}")
    assert "float8 with factors beside it" in refused(capsys, *line)


def base_with(tmp_path: Path, files: dict[str, object]) -> Path:
    """A pipeline whose U-Net has other files of weights."""
    import torch

    base = Path(shutil.copytree(tiny_pipeline("sd15"), tmp_path / "base"))
    (base / "unet" / f"{STEM}.safetensors").unlink()
    for name, value in files.items():
        file = base / "unet" / name
        if name.endswith(".json"):
            file.write_text(json.dumps(value))
        elif name.endswith(".bin"):
            torch.save(value, file)
        else:
            write_safetensors(value, file)
    return base


def half(scale: float = 1.0) -> dict[str, np.ndarray]:
    return {name: (scale * tensor).astype(np.float16) for name, tensor in tensors().items()}


def test_sharded_bin_is_read(tmp_path: Path) -> None:
    all_tensors = torch_tensors()
    parts = {f"{STEM}-0000{i}-of-00002.bin": sorted(all_tensors)[i - 1 :: 2] for i in (1, 2)}
    places = {name: file for file, names in parts.items() for name in names}
    files: dict[str, object] = {
        file: {name: all_tensors[name] for name in names} for file, names in parts.items()
    }
    base = base_with(tmp_path, files | {f"{STEM}.bin.index.json": {"weight_map": places}})
    assert_equal(loaded(base / "unet"), tensors())


def test_the_only_variant_of_a_bin_is_read(tmp_path: Path) -> None:
    import torch

    small = {name: tensor.to(torch.float16) for name, tensor in torch_tensors().items()}
    base = base_with(tmp_path, {f"{STEM}.fp16.bin": small})
    expected = {name: tensor.astype(np.float32) for name, tensor in half().items()}
    assert_equal(loaded(base), expected)


def test_one_of_several_variants_is_read_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_with(
        tmp_path, {f"{STEM}.fp16.safetensors": half(), f"{STEM}.non_ema.safetensors": half(0.5)}
    )
    line = ["sample", f"--pipeline={base}", "--prompt=a", f"--out={tmp_path / 'x.png'}"]
    assert "name the one that is meant by --variant" in refused(capsys, *line)
    assert "expected diffusion_pytorch_model.fp32.safetensors" in refused(
        capsys, *line, "--variant=fp32"
    )
    export = ["export", f"--pipeline={base}", f"--weights={base}", "--times=999"]
    for name, scale in (("fp16", 1.0), ("non_ema", 0.5)):
        assert dmd2(*export, f"--variant={name}", f"--out={tmp_path / name}") == 0
        got = read_safetensors(tmp_path / name / "unet" / f"{STEM}.safetensors")
        expected = {name: tensor.astype(np.float32) for name, tensor in half(scale).items()}
        assert_equal(got, expected)


def test_a_folder_of_an_average_is_weights(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-500" / "unet_ema"
    folder.mkdir(parents=True)
    write_safetensors(tensors(), folder / f"{STEM}.safetensors")
    assert_equal(loaded(folder), tensors())


# --- one file of the original names ---


def original(kind: str = "sd15") -> dict[str, np.ndarray]:
    names = unet_names(tensors(kind))
    made = {f"model.diffusion_model.{names[name]}": x for name, x in tensors(kind).items()}
    return made | {"first_stage_model.encoder.conv_in.weight": np.zeros((4, 3, 3, 3), np.float32)}


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_unet_of_a_single_file_is_read(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_safetensors(original(kind), tmp_path / "x.safetensors")
    assert_equal(exported(tmp_path, tmp_path / "x.safetensors", kind), tensors(kind))
    assert "left out first_stage_model.*. Text encoders and autoencoder are those of the p" in (
        caplog.text
    )


def test_a_ckpt_of_lightning_is_read(tmp_path: Path) -> None:
    import sys
    import types

    import torch

    made = {name: torch.from_numpy(tensor.copy()) for name, tensor in original().items()}
    made |= {"model_ema.diffusion_modelout2weight": torch.zeros(1)}
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module, kind = types.ModuleType(name), type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = kind
    value = {"state_dict": made, "epoch": 6, "callbacks": {kind: {"best_model_score": None}}}
    with pytest.MonkeyPatch.context() as patch:
        for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
            patch.setitem(sys.modules, part, module if part == name else types.ModuleType(part))
        torch.save(value, tmp_path / "x.ckpt")
    assert_equal(loaded(tmp_path / "x.ckpt"), tensors())


def test_a_bare_unet_of_the_original_names_is_read(tmp_path: Path) -> None:
    bare = {name.removeprefix("model.diffusion_model."): x for name, x in original().items()}
    del bare["first_stage_model.encoder.conv_in.weight"]
    write_safetensors(bare, tmp_path / "x.safetensors")
    assert_equal(loaded(tmp_path / "x.safetensors"), tensors())


def test_half_a_single_file_is_named_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = original()
    del made["model.diffusion_model.out.2.weight"]
    write_safetensors(made, tmp_path / "x.safetensors")
    said = refused(capsys, *words("sd15", tmp_path / "s", f"--weights={tmp_path}/x.safetensors"))
    assert "a checkpoint of the original names" in said and "1 missing: conv_out.weight" in said


@pytest.mark.parametrize("marker", ["v_pred", "header"])
def test_what_a_file_says_of_its_prediction_is_held_against_the_pipeline(
    marker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, nothing = tmp_path / "x.safetensors", np.zeros(0, np.float32)
    if marker == "v_pred":
        write_safetensors(original("sdxl") | {"v_pred": nothing, "ztsnr": nothing}, file)
    else:
        write_safetensors(original("sdxl"), file, {"modelspec.prediction_type": "v"})
    said = refused(capsys, *words("sdxl", tmp_path / "s", f"--weights={file}"))
    assert "that it predicts v_prediction, expected epsilon as in the pipeline's" in said
    line = words("sdxl", tmp_path / "s", f"--weights={file}", f"--pipeline={v_zero_snr()}")
    assert dmd2(*line) == 0
    got = read_safetensors(tmp_path / "s" / "unet" / f"{STEM}.safetensors")
    assert_equal(got, tensors("sdxl"))


def test_a_single_file_is_no_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_safetensors(original(), tmp_path / "x.safetensors")
    said = refused(capsys, "sample", f"--pipeline={tmp_path / 'x.safetensors'}", "--prompt=a")
    assert "is one file, expected the folder of a diffusers pipeline" in said


def test_a_lora_file_is_no_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    ones = np.ones((2, 2), np.float32)
    lora = {f"{layer}.lora_down.weight": ones, f"{layer}.lora_up.weight": ones}
    write_safetensors(lora, tmp_path / "x.safetensors")
    said = refused(capsys, *words("sd15", tmp_path / "s", f"--weights={tmp_path}/x.safetensors"))
    assert "merge it into a teacher by config.teacher.lora" in said
