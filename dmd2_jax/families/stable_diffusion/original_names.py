"""The names of Stable Diffusion's tensors in the programs that it was first published with.

A checkpoint of one file, as ComfyUI and A1111 open it, has them under these prefixes:

    model.diffusion_model.     the U-Net, here
    first_stage_model.         the autoencoder, here
    cond_stage_model.          the text encoder of SD 1.x and 2.x; conditioner.embedders. of SDXL

Both tables are made from diffusers' names alone, so that a network of any depth has its own.

Source: the published checkpoints of Stable Diffusion 1.5, 2.1 and XL; Rombach et al. 2022 (arXiv
  2112.10752) published the first.
"""

import re
from collections.abc import Collection, Iterator, Mapping

__all__ = ["AUTOENCODER_PREFIX", "UNET_PREFIX", "autoencoder_names", "unet_names"]

UNET_PREFIX = "model.diffusion_model."
AUTOENCODER_PREFIX = "first_stage_model."

_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_AUTOENCODER_BLOCK = {"conv_shortcut": "nin_shortcut"}
_AUTOENCODER_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def unet_names(names: Collection[str]) -> dict[str, str]:
    """Return the original name of each of a U-Net's tensors.

    Args:
      names: all its tensors, as diffusers calls them.

    Returns:
      diffusers' name -> the original one, without `UNET_PREFIX`.
    """
    modules = dict(_UNET)
    for side, original in (("down_blocks", "input_blocks"), ("up_blocks", "output_blocks")):
        place = 1 if side == "down_blocks" else 0
        for level in range(_count(names, side)):
            block = f"{side}.{level}"
            for layer in range(_count(names, f"{block}.resnets")):
                modules[f"{block}.resnets.{layer}"] = f"{original}.{place}.0"
                modules[f"{block}.attentions.{layer}"] = f"{original}.{place}.1"
                place += 1
            if _count(names, f"{block}.downsamplers"):
                modules[f"{block}.downsamplers.0.conv"] = f"{original}.{place}.0.op"
                place += 1
            # Up, the last layer of a level has the wider image after it.
            after = 1 + bool(_count(names, f"{block}.attentions"))
            modules[f"{block}.upsamplers.0.conv"] = f"{original}.{place - 1}.{after}.conv"
    return {name: _renamed(name, modules, {".resnets.": _RESNET}) for name in names}


def autoencoder_names(names: Collection[str]) -> dict[str, str]:
    """Return the original name of each of an AutoencoderKL's tensors.

    The original keeps the maps of its attention as convolutions of one pixel.

    Args:
      names: all its tensors, as diffusers calls them.

    Returns:
      diffusers' name -> the original one, without `AUTOENCODER_PREFIX`.
    """
    modules = {}
    for half, side, original in (("encoder", "down", "down"), ("decoder", "up", "up")):
        modules[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        modules[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
        for layer in range(_count(names, f"{half}.mid_block.resnets")):
            modules[f"{half}.mid_block.resnets.{layer}"] = f"{half}.mid.block_{layer + 1}"
        levels = _count(names, f"{half}.{side}_blocks")
        for level in range(levels):
            block = f"{half}.{side}_blocks.{level}"
            # The original counts the decoder's levels from the finest too.
            number = level if half == "encoder" else levels - 1 - level
            for layer in range(_count(names, f"{block}.resnets")):
                modules[f"{block}.resnets.{layer}"] = f"{half}.{original}.{number}.block.{layer}"
            sampler = f"{block}.{side}samplers.0"
            modules[sampler] = f"{half}.{original}.{number}.{side}sample"
    inner = {".resnets.": _AUTOENCODER_BLOCK, ".attentions.": _AUTOENCODER_ATTENTION}
    return {name: _renamed(name, modules, inner) for name in names}


def _count(names: Collection[str], of: str) -> int:
    """Return how many numbered modules `of` has."""
    found = {m[1] for name in names if (m := re.match(rf"{re.escape(of)}\.(\d+)\.", name))}
    return len(found)


def _renamed(name: str, modules: Mapping[str, str], inner: Mapping[str, Mapping[str, str]]) -> str:
    """Return a tensor's name with its module, and what is in that, as the tables call them."""
    for module in _prefixes(name):
        if module in modules:
            rest = name.removeprefix(module)
            for kind, table in inner.items():
                if kind in name:
                    rest = _replaced(rest, table)
            return modules[module] + rest
    return name


def _replaced(rest: str, table: Mapping[str, str]) -> str:
    """Replace the module with which a rest such as ".conv1.weight" begins."""
    for module in _prefixes(rest[1:]):
        if module in table:
            return "." + table[module] + rest[1:].removeprefix(module)
    return rest


def _prefixes(name: str) -> Iterator[str]:
    """Yield the modules that a tensor is in, the innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
