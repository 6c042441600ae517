"""From the config.json of a diffusers QwenImageTransformer2DModel to the network, and its names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.model import published_name
from dmd2_jax.families.qwen_image.transformer import PATCH, QwenImageTransformer
from dmd2_jax.networks.feature_blocks import chosen_blocks
from dmd2_jax.networks.published_config import read_config
from dmd2_jax.typing import DType

__all__ = ["CLASS_NAME", "example_inputs", "tensor_name", "transformer_from_config"]

CLASS_NAME = "QwenImageTransformer2DModel"

_DEFAULTS = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "axes_dims_rope": (16, 56, 56),
}
_SUPPORTED = {
    "patch_size": (PATCH,),
    "guidance_embeds": (False,),
    # Of Qwen-Image-Edit-2511 and of Qwen-Image-Layered.
    "zero_cond_t": (False,),
    "use_additional_t_cond": (False,),
    "use_layer3d_rope": (False,),
    # Written by older releases, and read by none.
    "pooled_projection_dim": (768, None),
}
_AXES = 3
# What the blocks of SD 3 call their parts -> what these weights do.
_PARTS = {
    ("norm1", "linear"): ("img_mod", "1"),
    ("norm1_context", "linear"): ("txt_mod", "1"),
    ("ff",): ("img_mlp",),
    ("ff_context",): ("txt_mlp",),
}


def transformer_from_config(
    config: Mapping[str, Any], *, dtype: DType = jnp.float32, remat: str = "none"
) -> QwenImageTransformer:
    """Build the transformer that a config.json of a QwenImageTransformer2DModel describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.
      remat: "none", "block" or "full", see `QwenImageTransformer`.

    Returns:
      The network, without weights.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    c = read_config(config, class_name=CLASS_NAME, defaults=_DEFAULTS, supported=_SUPPORTED)
    packed, axes, size = c["in_channels"], c["axes_dims_rope"], c["attention_head_dim"]
    if packed != PATCH**2 * c["out_channels"]:
        raise Refused(
            f"in_channels={packed} with out_channels={c['out_channels']}, expected "
            f"{PATCH**2} times as many: networks that take more than a latent are not built here; "
            "use a text-to-image model."
        )
    if len(axes) != _AXES or sum(axes) != size or any(axis % 2 for axis in axes):
        raise Refused(
            f"axes_dims_rope={list(axes)}, expected {_AXES} even numbers that sum up to "
            f"attention_head_dim={size}; correct config.json."
        )
    return QwenImageTransformer(
        channels=c["out_channels"],
        heads=c["num_attention_heads"],
        depth=c["num_layers"],
        width=c["num_attention_heads"] * size,
        context_dim=c["joint_attention_dim"],
        axes=tuple(axes),
        feature_blocks=chosen_blocks((), c["num_layers"]),
        dtype=dtype,
        remat=remat,
    )


def example_inputs(module: QwenImageTransformer) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the smallest inputs that reach every parameter, for `module.init` or `eval_shape`."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return (
        array(1, PATCH, PATCH, module.channels),
        array(1),
        array(1, 1, module.context_dim),
        array(1, 1),
    )


def tensor_name(path: tuple[str, ...]) -> str:
    """Spell a leaf's path as the published weights do."""
    for ours, theirs in _PARTS.items():
        if path[2 : 2 + len(ours)] == ours:
            return published_name((*path[:2], *theirs, *path[2 + len(ours) :]))
    return published_name(path)
