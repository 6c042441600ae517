"""From the config.json of a diffusers UNet2DConditionModel to the network."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import REMAT
from dmd2_jax.families.stable_diffusion.unet import AddedCondition, StableDiffusionUNet
from dmd2_jax.networks.published_config import per_level, read_config
from dmd2_jax.typing import DType

__all__ = ["example_unet_inputs", "unet_from_config"]

_DEFAULTS = {
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "up_block_types": (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    ),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    # Historical: the NUMBER of heads; num_attention_heads came later and must be null.
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "time_embedding_dim": None,
    "time_cond_proj_dim": None,
}

_SUPPORTED = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "dual_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}

# upcast_attention: the softmax is float32 here always. The others act only with a setting that is
# refused above.
_IGNORED = ("addition_embed_type_num_heads", "encoder_hid_dim", "sample_size", "upcast_attention")

_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
_SDXL_TIME_IDS = 6


def unet_from_config(
    config: Mapping[str, Any], *, dtype: DType = jnp.float32, remat: str = "none"
) -> StableDiffusionUNet:
    """Build the U-Net that a config.json of a UNet2DConditionModel describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.
      remat: "none", "block" or "full", see `StableDiffusionUNet`.

    Returns:
      The network, without weights.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    if remat not in REMAT:
        raise Refused(f"remat={remat!r}, expected one of {REMAT}; correct the config.")
    c = read_config(
        config,
        class_name="UNet2DConditionModel",
        defaults=_DEFAULTS,
        supported=_SUPPORTED,
        ignored=_IGNORED,
    )
    channels = c["block_out_channels"]
    levels = len(channels)
    heads = per_level("attention_head_dim", c["attention_head_dim"], levels)
    depths = per_level("transformer_layers_per_block", c["transformer_layers_per_block"], levels)
    reverse = c["reverse_transformer_layers_per_block"]
    up_depths = (
        depths[::-1]
        if reverse is None
        else per_level("reverse_transformer_layers_per_block", reverse, levels)
    )
    if any(not isinstance(depth, int) for depth in depths + up_depths):
        raise Refused(
            f"transformer_layers_per_block={depths} has a list inside a list, expected one number "
            "a level; pruned U-Nets with unequal layers are not built here."
        )
    _check_widths(channels, heads, c["norm_num_groups"])
    return StableDiffusionUNet(
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        block_channels=channels,
        layers=per_level("layers_per_block", c["layers_per_block"], levels),
        down_depths=_where("down_block_types", c["down_block_types"], _DOWN, depths),
        up_depths=_where("up_block_types", c["up_block_types"], _UP, up_depths),
        mid_depth=depths[-1],
        heads=heads,
        context_dim=_one_context(c["cross_attention_dim"]),
        linear=c["use_linear_projection"],
        time_dim=c["time_embedding_dim"] or 4 * channels[0],
        time_condition_dim=c["time_cond_proj_dim"],
        added=_added(c),
        groups=c["norm_num_groups"],
        eps=c["norm_eps"],
        cosine_first=c["flip_sin_to_cos"],
        freq_shift=c["freq_shift"],
        dtype=dtype,
        remat=remat,
    )


def example_unet_inputs(unet: StableDiffusionUNet) -> tuple[jax.ShapeDtypeStruct | None, ...]:
    """Return the smallest inputs that reach every parameter, for `module.init` or `eval_shape`."""
    size = 2 ** (len(unet.block_channels) - 1)

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    pooled = time_ids = guidance = None
    if unet.added:
        # A refiner has 5 numbers of size, and a prompt of another size takes the rest.
        count = min(_SDXL_TIME_IDS, (unet.added.total - 1) // unet.added.time_features)
        time_ids = array(1, count)
        pooled = array(1, unet.added.total - count * unet.added.time_features)
    if unet.time_condition_dim:
        guidance = array(1, unet.time_condition_dim)
    return (
        array(1, size, size, unet.in_channels),
        array(1),
        array(1, 1, unet.context_dim),
        pooled,
        time_ids,
        guidance,
    )


def _where(
    name: str, types: tuple[str, ...], known: Mapping[str, bool], depths: tuple[int, ...]
) -> tuple[int, ...]:
    """Return each level's depth, 0 where its type has no transformer."""
    unknown = sorted(set(types) - set(known))
    if unknown or len(types) != len(depths):
        raise Refused(
            f"{name}={list(types)}, expected {len(depths)} of {sorted(known)}, one for each entry "
            "of block_out_channels; use the U-Net of SD 1.x, SD 2.x or SDXL."
        )
    return tuple(depth if known[kind] else 0 for kind, depth in zip(types, depths, strict=True))


def _check_widths(channels: tuple[int, ...], heads: tuple[int, ...], groups: int) -> None:
    for width, count in zip(channels, heads, strict=True):
        if width % groups or width % count:
            raise Refused(
                f"block_out_channels={channels} has {width}, expected a multiple of "
                f"norm_num_groups={groups} and of the level's attention_head_dim={count} (which "
                "is the number of heads); correct config.json."
            )


def _one_context(dim: Any) -> int:
    sizes = set(dim) if isinstance(dim, tuple) else {dim}
    if len(sizes) != 1:
        raise Refused(
            f"cross_attention_dim={dim}, expected one size for all levels; use the U-Net of "
            "SD 1.x, SD 2.x or SDXL."
        )
    return sizes.pop()


def _added(c: Mapping[str, Any]) -> AddedCondition | None:
    if c["addition_embed_type"] is None:
        return None
    features, total = c["addition_time_embed_dim"], c["projection_class_embeddings_input_dim"]
    if c["addition_embed_type"] != "text_time" or not features or not total or total <= features:
        raise Refused(
            f"addition_embed_type={c['addition_embed_type']!r} with addition_time_embed_dim="
            f"{features} and projection_class_embeddings_input_dim={total}, expected null, or "
            "'text_time' with both sizes, the second the larger; use the U-Net of SD 1.x, SD 2.x "
            "or SDXL."
        )
    return AddedCondition(features, total)
