"""`teacher.lora`: the teacher that is read is diffusers' pipeline with the adapters fused."""

from pathlib import Path

import numpy as np
import pytest

import tests.pipelines  # noqa: F401  first: it skips this file where torch is missing
from dmd2_jax.config import defaults
from dmd2_jax.families.stable_diffusion.original_names import unet_names
from dmd2_jax.recipe.open import build_family
from dmd2_jax.recipe.teacher import load_teacher
from dmd2_jax.recipe.weights import read_teacher
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.pipelines import diffusers_pipeline, tiny_pipeline

LAYERS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.0.resnets.0.conv1",
)
SCALE = 0.7


def config_of(lora: str):
    config = defaults.get_config("stable_diffusion")
    config.model.pipeline, config.model.resolution = str(tiny_pipeline("sdxl")), 8
    config.teacher.lora, config.teacher.lora_scale = lora, SCALE
    config.distill.student_times = (999.0,)
    return config


def kohya_file(folder: Path, original: bool) -> Path:
    """A file of two ranks and other alphas, with the names of either kind."""
    weights = read_safetensors(
        tiny_pipeline("sdxl") / "unet" / "diffusion_pytorch_model.safetensors"
    )
    names, random, tensors = unet_names(weights), np.random.RandomState(0), {}
    for number, layer in enumerate(LAYERS):
        out, *rest = weights[f"{layer}.weight"].shape
        rank, point = 2 + number, (1,) * (len(rest) - 1)
        spelled = names[f"{layer}.weight"].removesuffix(".weight") if original else layer
        flat = "lora_unet_" + spelled.replace(".", "_")
        for end, shape in (("down", (rank, *rest)), ("up", (out, rank, *point))):
            tensors[f"{flat}.lora_{end}.weight"] = random.standard_normal(shape).astype(np.float32)
        tensors[f"{flat}.alpha"] = np.float32(1.5)
    write_safetensors(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors"


@pytest.mark.parametrize("original", [False, True])
def test_teacher_with_lora_is_what_diffusers_fuses(original: bool, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="diffusers loads adapters by peft, which is not installed")
    file = kohya_file(tmp_path, original)
    config = config_of(str(file))
    family = build_family(config)
    got = family.to_state_dict(load_teacher(config, family))
    plain = family.to_state_dict(load_teacher(config_of(""), family))
    pipe = diffusers_pipeline(tiny_pipeline("sdxl"))
    pipe.load_lora_weights(file)
    pipe.fuse_lora(lora_scale=SCALE)
    pipe.unload_lora_weights()
    expected = pipe.unet.state_dict()
    for name, tensor in expected.items():
        np.testing.assert_allclose(got[name], tensor.numpy(), atol=2e-6, err_msg=name)
    changed = {name for name in got if not np.array_equal(got[name], plain[name])}
    assert changed == {f"{layer}.weight" for layer in LAYERS}


def test_teacher_is_recorded_as_the_merged_weights(tmp_path: Path) -> None:
    config = config_of(str(kohya_file(tmp_path, True)))
    family = build_family(config)
    digest = read_teacher(config, family)[1]["digest"]
    assert digest != read_teacher(config_of(""), family)[1]["digest"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lora": "absent.safetensors"}, "no weights at absent.safetensors"),
        ({"lora_scale": float("nan")}, "config.teacher.lora_scale=nan, expected a number"),
    ],
)
def test_teacher_refuses(changes: dict, message: str) -> None:
    config = config_of("")
    config.teacher.update(changes)
    with pytest.raises(ValueError, match=message):
        load_teacher(config, build_family(config))
