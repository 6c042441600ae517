"""From the config.json of a diffusers FluxTransformer2DModel to the network."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.flux.transformer import PATCH, FluxTransformer
from dmd2_jax.networks.feature_blocks import chosen_blocks
from dmd2_jax.networks.published_config import read_config
from dmd2_jax.typing import DType

__all__ = ["CLASS_NAME", "example_inputs", "transformer_from_config"]

CLASS_NAME = "FluxTransformer2DModel"

_DEFAULTS = {
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
_SUPPORTED = {"patch_size": (1,)}
_AXES = 3


def transformer_from_config(
    config: Mapping[str, Any], *, dtype: DType = jnp.float32, remat: str = "none"
) -> FluxTransformer:
    """Build the transformer that a config.json of a FluxTransformer2DModel describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.
      remat: "none", "block" or "full", see `FluxTransformer`.

    Returns:
      The network, without weights.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    c = read_config(config, class_name=CLASS_NAME, defaults=_DEFAULTS, supported=_SUPPORTED)
    packed, axes, size = c["in_channels"], c["axes_dims_rope"], c["attention_head_dim"]
    if c["out_channels"] not in (None, packed) or packed % PATCH**2:
        raise Refused(
            f"in_channels={packed} with out_channels={c['out_channels']}, expected one number, a "
            f"multiple of {PATCH**2}: networks for filling, depth and the like take more than a "
            "latent; use a text-to-image model."
        )
    if len(axes) != _AXES or sum(axes) != size or any(axis % 2 for axis in axes):
        raise Refused(
            f"axes_dims_rope={list(axes)}, expected {_AXES} even numbers that sum up to "
            f"attention_head_dim={size}; correct config.json."
        )
    depth, single = c["num_layers"], c["num_single_layers"]
    return FluxTransformer(
        channels=packed // PATCH**2,
        heads=c["num_attention_heads"],
        depth=depth,
        single_depth=single,
        width=c["num_attention_heads"] * size,
        context_dim=c["joint_attention_dim"],
        pooled_dim=c["pooled_projection_dim"],
        axes=tuple(axes),
        guidance=bool(c["guidance_embeds"]),
        feature_blocks=chosen_blocks((), depth + single),
        dtype=dtype,
        remat=remat,
    )


def example_inputs(module: FluxTransformer) -> tuple[jax.ShapeDtypeStruct | None, ...]:
    """Return the smallest inputs that reach every parameter, for `module.init` or `eval_shape`."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return (
        array(1, PATCH, PATCH, module.channels),
        array(1),
        array(1, 1, module.context_dim),
        array(1, module.pooled_dim),
        array(1) if module.guidance else None,
    )
