"""The original names: against recorded ones, against diffusers' converter, and back."""

import pytest

from dmd2_jax.families.published import configs
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.families.stable_diffusion.original_names import autoencoder_names, unet_names
from tests.families import tiny_models

# Of v1-5-pruned-emaonly and sd_xl_base_1.0.
SD15 = {
    "conv_in.weight": "input_blocks.0.0.weight",
    "time_embedding.linear_2.bias": "time_embed.2.bias",
    "down_blocks.0.resnets.0.norm1.weight": "input_blocks.1.0.in_layers.0.weight",
    "down_blocks.0.attentions.1.proj_in.weight": "input_blocks.2.1.proj_in.weight",
    "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
    "down_blocks.1.resnets.0.conv_shortcut.weight": "input_blocks.4.0.skip_connection.weight",
    "down_blocks.3.resnets.1.conv2.bias": "input_blocks.11.0.out_layers.3.bias",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": (
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    ),
    "mid_block.resnets.1.time_emb_proj.weight": "middle_block.2.emb_layers.1.weight",
    "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.bias": (
        "output_blocks.3.1.transformer_blocks.0.attn1.to_out.0.bias"
    ),
    "up_blocks.1.upsamplers.0.conv.bias": "output_blocks.5.2.conv.bias",
    "up_blocks.3.resnets.2.norm2.weight": "output_blocks.11.0.out_layers.0.weight",
    "conv_norm_out.weight": "out.0.weight",
    "conv_out.bias": "out.2.bias",
}
SDXL = {
    "add_embedding.linear_1.weight": "label_emb.0.0.weight",
    "add_embedding.linear_2.bias": "label_emb.0.2.bias",
    "down_blocks.1.attentions.0.transformer_blocks.1.ff.net.0.proj.weight": (
        "input_blocks.4.1.transformer_blocks.1.ff.net.0.proj.weight"
    ),
    "down_blocks.2.attentions.1.transformer_blocks.9.norm3.weight": (
        "input_blocks.8.1.transformer_blocks.9.norm3.weight"
    ),
    "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.2.conv.weight",
    "up_blocks.1.upsamplers.0.conv.weight": "output_blocks.5.2.conv.weight",
    "up_blocks.2.resnets.2.conv_shortcut.bias": "output_blocks.8.0.skip_connection.bias",
}
AUTOENCODER = {
    "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (
        "encoder.down.1.block.0.nin_shortcut.weight"
    ),
    "encoder.down_blocks.2.downsamplers.0.conv.bias": "encoder.down.2.downsample.conv.bias",
    "encoder.mid_block.attentions.0.group_norm.weight": "encoder.mid.attn_1.norm.weight",
    "encoder.mid_block.attentions.0.to_out.0.weight": "encoder.mid.attn_1.proj_out.weight",
    "decoder.mid_block.resnets.1.conv1.weight": "decoder.mid.block_2.conv1.weight",
    "decoder.up_blocks.0.resnets.2.conv2.bias": "decoder.up.3.block.2.conv2.bias",
    "decoder.up_blocks.2.upsamplers.0.conv.weight": "decoder.up.1.upsample.conv.weight",
    "decoder.conv_norm_out.bias": "decoder.norm_out.bias",
    "quant_conv.weight": "quant_conv.weight",
}


def published(config: configs.Config) -> dict[str, tuple[int, ...]]:
    return PublishedModel.from_config(config, classes=CLASSES).tensor_shapes()


@pytest.mark.parametrize(
    "config, recorded, count",
    [(configs.SD15_UNET, SD15, 686), (configs.SDXL_UNET, SDXL, 1680)],
    ids=["sd15", "sdxl"],
)
def test_unet_names_are_the_recorded(config, recorded, count):
    names = unet_names(published(config))
    assert {name: names[name] for name in recorded} == recorded
    assert len(names) == len(set(names.values())) == count


def test_autoencoder_names_are_the_recorded():
    names = autoencoder_names(published(configs.SD_VAE))
    assert {name: names[name] for name in AUTOENCODER} == AUTOENCODER
    assert len(names) == len(set(names.values())) == 248


@pytest.mark.parametrize("config", [tiny_models.UNET, tiny_models.SDXL_UNET], ids=["sd", "sdxl"])
def test_diffusers_converter_takes_the_names_back(config):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    names = unet_names(published(config))
    original = {f"model.diffusion_model.{new}": old for old, new in names.items()}
    assert convert_ldm_unet_checkpoint(original, config) == {name: name for name in names}
