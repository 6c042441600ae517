"""From the config.json of a diffusers Flux2Transformer2DModel to the network."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.flux2_klein.transformer import Flux2Transformer
from dmd2_jax.networks.feature_blocks import chosen_blocks
from dmd2_jax.networks.published_config import read_config
from dmd2_jax.typing import DType

__all__ = ["CLASS_NAME", "example_inputs", "transformer_from_config"]

CLASS_NAME = "Flux2Transformer2DModel"

_DEFAULTS = {
    "in_channels": 128,
    "out_channels": None,
    "num_layers": 8,
    "num_single_layers": 48,
    "attention_head_dim": 128,
    "num_attention_heads": 48,
    "joint_attention_dim": 15360,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "rope_theta": 2000.0,
    "eps": 1e-6,
    "guidance_embeds": True,
}
_SUPPORTED = {"patch_size": (1,)}
_AXES = 4


def transformer_from_config(
    config: Mapping[str, Any], *, dtype: DType = jnp.float32, remat: str = "none"
) -> Flux2Transformer:
    """Build the transformer that a config.json of a Flux2Transformer2DModel describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.
      remat: "none", "block" or "full", see `DenoisingTransformer`.

    Returns:
      The network, without weights.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    c = read_config(config, class_name=CLASS_NAME, defaults=_DEFAULTS, supported=_SUPPORTED)
    if c["guidance_embeds"]:
        raise Refused(
            "guidance_embeds=True (diffusers' default where config.json says nothing), expected "
            "False: FLUX.2-klein takes no guidance scale as an input, FLUX.2-dev does; use klein."
        )
    channels, axes, size = c["in_channels"], c["axes_dims_rope"], c["attention_head_dim"]
    if c["out_channels"] not in (None, channels):
        raise Refused(
            f"in_channels={channels} with out_channels={c['out_channels']}, expected one number; "
            "use a text-to-image model."
        )
    if len(axes) != _AXES or sum(axes) != size or any(axis % 2 for axis in axes):
        raise Refused(
            f"axes_dims_rope={list(axes)}, expected {_AXES} even numbers that sum up to "
            f"attention_head_dim={size}; correct config.json."
        )
    width, depth, single = c["num_attention_heads"] * size, c["num_layers"], c["num_single_layers"]
    return Flux2Transformer(
        channels=channels,
        heads=c["num_attention_heads"],
        depth=depth,
        single_depth=single,
        width=width,
        context_dim=c["joint_attention_dim"],
        hidden=int(width * c["mlp_ratio"]),
        axes=tuple(axes),
        theta=float(c["rope_theta"]),
        time_channels=c["timestep_guidance_channels"],
        eps=c["eps"],
        feature_blocks=chosen_blocks((), depth + single),
        dtype=dtype,
        remat=remat,
    )


def example_inputs(module: Flux2Transformer) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the smallest inputs that reach every parameter, for `module.init` or `eval_shape`."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return array(1, 1, 1, module.channels), array(1), array(1, 1, module.context_dim)
