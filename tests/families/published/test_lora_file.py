"""LoRA files of others: every naming means the same weights; what is another kind is refused."""

import json

import numpy as np
import pytest

from dmd2_jax.families.published.lora_file import add_lora, lora_layers
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.families.stable_diffusion.original_names import unet_names
from dmd2_jax.weights.weight_files import Weights
from tests.families import tiny_models

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.1.attn1"
LAYERS = (
    f"{ATTENTION}.to_q",
    f"{ATTENTION}.to_out.0",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.resnets.0.conv1",
    "up_blocks.0.resnets.1.conv_shortcut",
    "down_blocks.0.downsamplers.0.conv",
)
# As kohya's programs write the same layers of SDXL, and of SD 1.x.
ORIGINAL = (
    "lora_unet_input_blocks_3_1_transformer_blocks_1_attn1_to_q",
    "lora_unet_input_blocks_3_1_transformer_blocks_1_attn1_to_out_0",
    "lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj",
    "lora_unet_output_blocks_0_0_in_layers_2",
    "lora_unet_output_blocks_1_0_skip_connection",
    "lora_unet_input_blocks_2_0_op",
)
RANK, ALPHA = 2, 3.0


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    return PublishedModel.from_config(tiny_models.SDXL_UNET, classes=CLASSES).tensor_shapes()


@pytest.fixture(scope="module")
def adapters(shapes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer -> (down, up)."""
    random, made = np.random.RandomState(0), {}
    for layer in LAYERS:
        out, *rest = shapes[f"{layer}.weight"]
        point = (1,) * (len(rest) - 1)
        made[layer] = tuple(
            random.standard_normal(shape).astype(np.float32)
            for shape in ((RANK, *rest), (out, RANK, *point))
        )
    return made


def named(adapters, names, down, up, alpha=""):
    """A file's tensors: name of a layer + the ends."""
    tensors = {}
    for name, (first, second) in zip(names, adapters.values(), strict=True):
        tensors |= {name + down: first, name + up: second}
        if alpha:
            tensors[name + alpha] = np.float32(ALPHA)
    return tensors


KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
FLAT = tuple("lora_unet_" + layer.replace(".", "_") for layer in LAYERS)
PEFT = (".lora_A.weight", ".lora_B.weight")
HEADER = {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": ALPHA})}
PATTERN = {"unet.r": 9, "unet.lora_alpha": 1, "unet.alpha_pattern": dict.fromkeys(LAYERS, ALPHA)}


@pytest.mark.parametrize(
    "names, ends, notes, scale",
    [
        (FLAT, KOHYA, {}, ALPHA / RANK),
        (ORIGINAL, KOHYA, {}, ALPHA / RANK),
        (ORIGINAL, KOHYA[:2], {}, 1.0),
        ([f"unet.{x}" for x in LAYERS], PEFT, {}, 1.0),
        ([f"unet.{x}" for x in LAYERS], PEFT, HEADER, ALPHA / RANK),
        (LAYERS, PEFT, {"lora_adapter_metadata": json.dumps(PATTERN)}, ALPHA / RANK),
        ([f"base_model.model.{x}" for x in LAYERS], PEFT, {}, 1.0),
        ([f"unet.{x}" for x in LAYERS], (".lora.down.weight", ".lora.up.weight"), {}, 1.0),
    ],
)
def test_every_naming_is_the_same_adapter(names, ends, notes, scale, shapes, adapters):
    tensors = named(adapters, names, *ends)
    found = lora_layers(Weights(tensors, notes=notes), shapes, unet_names(shapes))
    assert found.keys() == adapters.keys()
    for layer, (down, up, got) in found.items():
        np.testing.assert_array_equal(down, adapters[layer][0])
        np.testing.assert_array_equal(up, adapters[layer][1])
        assert got == scale


def test_every_layer_has_its_own_alpha(shapes, adapters):
    # diffusers 0.42.1 gives attention layers another layer's where they differ.
    tensors = named(adapters, FLAT, *KOHYA)
    for number, name in enumerate(FLAT):
        tensors[f"{name}.alpha"] = np.float32(number + 1)
    found = lora_layers(Weights(tensors), shapes, {})
    assert [found[layer].scale for layer in LAYERS] == [(n + 1) / RANK for n in range(len(FLAT))]


def test_old_attention_processors_are_todays_layers(shapes, adapters):
    down, up = adapters[f"{ATTENTION}.to_q"]
    tensors = {}
    for old in ("to_q", "to_out"):
        tensors[f"unet.{ATTENTION}.processor.{old}_lora.down.weight"] = down
        tensors[f"unet.{ATTENTION}.processor.{old}_lora.up.weight"] = up
    found = lora_layers(Weights(tensors), shapes, {})
    assert found.keys() == {f"{ATTENTION}.to_q", f"{ATTENTION}.to_out.0"}


def test_add_lora_is_weight_plus_scaled_product(shapes, adapters):
    tensors = named(adapters, ORIGINAL, *KOHYA)
    found = lora_layers(Weights(tensors), shapes, unet_names(shapes))
    weight = np.random.RandomState(1).standard_normal(shapes["up_blocks.0.resnets.0.conv1.weight"])
    down, up = (x.astype(np.float64) for x in adapters["up_blocks.0.resnets.0.conv1"])
    expected = weight + 0.5 * ALPHA / RANK * np.einsum("orij,rcxy->ocxy", up, down)
    got = add_lora(weight.astype(np.float32), found["up_blocks.0.resnets.0.conv1"], 0.5)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_what_is_for_text_encoders_and_dora_is_left_out_and_said(shapes, adapters, caplog):
    tensors = named(adapters, FLAT, *KOHYA)
    tensors |= {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": np.ones((1, 1))}
    tensors |= {f"{FLAT[0]}.dora_scale": np.ones((1, 1))}
    assert len(lora_layers(Weights(tensors), shapes, {})) == len(LAYERS)
    assert "1 tensors of LoRA for text encoders" in caplog.text
    assert "1 tensors dora_scale, as diffusers does" in caplog.text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({f"{FLAT[0]}.hada_w1_a": np.ones((2, 2))}, "no low-rank adapters of a known kind, .*hada"),
        ({f"{FLAT[0]}.lora_mid.weight": np.ones((2, 2))}, "no low-rank adapters of a known kind"),
        ({"lora_unet_input_blocks_8_1_x.alpha": np.ones(())}, "LoRA of another base: 1 tensors"),
        ({f"{FLAT[0]}.lora_up.weight": np.ones((3, RANK))}, "1 of 6 layers do not fit"),
        ({f"{FLAT[0]}.lora_up.weight": np.full((16, RANK), np.nan)}, "not finite"),
        ({f"{FLAT[0]}.alpha": np.float32(np.inf)}, "alpha=inf, expected a number"),
    ],
)
def test_another_kind_or_base_is_refused_by_name(changes, message, shapes, adapters):
    tensors = named(adapters, FLAT, *KOHYA) | changes
    with pytest.raises(ValueError, match=message):
        lora_layers(Weights(tensors), shapes, unet_names(shapes))


def test_adapters_of_text_encoders_alone_are_refused(shapes):
    tensors = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": np.ones((1, 1))}
    with pytest.raises(ValueError, match="no LoRA of this network: got 1 tensors, 1 of them of te"):
        lora_layers(Weights(tensors), shapes, {})


def test_half_an_adapter_is_refused(shapes, adapters):
    tensors = named(adapters, FLAT, *KOHYA)
    del tensors[f"{FLAT[0]}.lora_up.weight"]
    with pytest.raises(ValueError, match=r"has \['alpha', 'down'\] in the file, expected down and"):
        lora_layers(Weights(tensors), shapes, {})
