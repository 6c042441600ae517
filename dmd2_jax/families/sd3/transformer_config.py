"""From the config.json of a diffusers SD3Transformer2DModel to the network."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.sd3.transformer import SD3Transformer
from dmd2_jax.networks.feature_blocks import chosen_blocks
from dmd2_jax.networks.published_config import read_config
from dmd2_jax.typing import DType

__all__ = ["CLASS_NAME", "example_inputs", "transformer_from_config"]

CLASS_NAME = "SD3Transformer2DModel"

_DEFAULTS = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    "dual_attention_layers": (),
    "qk_norm": None,
}
_QK_NORMS = {None: False, "rms_norm": True}


def transformer_from_config(
    config: Mapping[str, Any], *, dtype: DType = jnp.float32, remat: str = "none"
) -> SD3Transformer:
    """Build the transformer that a config.json of a SD3Transformer2DModel describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.
      remat: "none", "block" or "full", see `SD3Transformer`.

    Returns:
      The network, without weights.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    c = read_config(config, class_name=CLASS_NAME, defaults=_DEFAULTS, supported={})
    width = c["num_attention_heads"] * c["attention_head_dim"]
    if c["qk_norm"] not in _QK_NORMS:
        raise Refused(
            f"qk_norm={c['qk_norm']!r}, expected null (SD 3) or 'rms_norm' (SD 3.5); use such a "
            "network."
        )
    if c["caption_projection_dim"] != width or width % 4:
        raise Refused(
            f"caption_projection_dim={c['caption_projection_dim']}, expected num_attention_heads "
            f"x attention_head_dim = {width}, a multiple of 4; correct config.json."
        )
    dual, depth = tuple(c["dual_attention_layers"]), c["num_layers"]
    if any(type(n) is not int or not 0 <= n < depth for n in dual):
        raise Refused(
            f"dual_attention_layers={list(dual)}, expected numbers of the {depth} blocks, from 0; "
            "correct config.json."
        )
    return SD3Transformer(
        in_channels=c["in_channels"],
        out_channels=c["in_channels"] if c["out_channels"] is None else c["out_channels"],
        patch=c["patch_size"],
        heads=c["num_attention_heads"],
        depth=depth,
        width=width,
        context_dim=c["joint_attention_dim"],
        pooled_dim=c["pooled_projection_dim"],
        table_side=c["pos_embed_max_size"],
        base_side=c["sample_size"] // c["patch_size"],
        qk_norm=_QK_NORMS[c["qk_norm"]],
        dual=dual,
        feature_blocks=chosen_blocks((), depth),
        dtype=dtype,
        remat=remat,
    )


def example_inputs(module: SD3Transformer) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the smallest inputs that reach every parameter, for `module.init` or `eval_shape`."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    latent = array(1, module.patch, module.patch, module.in_channels)
    return latent, array(1), array(1, 1, module.context_dim), array(1, module.pooled_dim)
