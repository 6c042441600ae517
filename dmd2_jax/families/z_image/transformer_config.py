"""From the config.json of a diffusers ZImageTransformer2DModel to the network, and its names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.model import published_name
from dmd2_jax.families.z_image.transformer import MULTIPLE, PATCH, ZImageTransformer
from dmd2_jax.networks.feature_blocks import chosen_blocks
from dmd2_jax.networks.published_config import read_config
from dmd2_jax.typing import DType

__all__ = ["CLASS_NAME", "example_inputs", "tensor_name", "transformer_from_config"]

CLASS_NAME = "ZImageTransformer2DModel"

_DEFAULTS = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": (32, 48, 48),
    "axes_lens": (1024, 512, 512),
}
_SUPPORTED = {
    "all_patch_size": ((PATCH,),),
    "all_f_patch_size": ((1,),),
    "siglip_feat_dim": (None,),
}
# A list of layers by the sizes of their patches, of which there is one.
_BY_PATCH = {"x_embedder": "all_x_embedder.2-1", "final_layer": "all_final_layer.2-1"}
_AXES = 3


def transformer_from_config(
    config: Mapping[str, Any], *, dtype: DType = jnp.float32, remat: str = "none"
) -> ZImageTransformer:
    """Build the transformer that a config.json of a ZImageTransformer2DModel describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.
      remat: "none", "block" or "full", see `ZImageTransformer`.

    Returns:
      The network, without weights.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    c = read_config(config, class_name=CLASS_NAME, defaults=_DEFAULTS, supported=_SUPPORTED)
    axes, places, width, heads = c["axes_dims"], c["axes_lens"], c["dim"], c["n_heads"]
    if c["n_kv_heads"] != heads:
        raise Refused(
            f"n_kv_heads={c['n_kv_heads']} with n_heads={heads}, expected one number: as many keys "
            "as queries; correct config.json."
        )
    size = width // max(heads, 1)
    even = all(axis > 0 and axis % 2 == 0 for axis in axes)
    if len(axes) != _AXES or len(places) != _AXES or not even or sum(axes) * heads != width:
        raise Refused(
            f"axes_dims={list(axes)} and axes_lens={list(places)} with dim={width} and "
            f"n_heads={heads}, expected {_AXES} numbers each, and even axes_dims that sum up to a "
            f"head's size ({size}); correct config.json."
        )
    return ZImageTransformer(
        channels=c["in_channels"],
        heads=heads,
        depth=c["n_layers"],
        refiners=c["n_refiner_layers"],
        width=width,
        context_dim=c["cap_feat_dim"],
        axes=tuple(axes),
        places=tuple(places),
        theta=c["rope_theta"],
        time_scale=c["t_scale"],
        eps=c["norm_eps"],
        qk_norm=c["qk_norm"],
        feature_blocks=chosen_blocks((), c["n_layers"]),
        dtype=dtype,
        remat=remat,
    )


def example_inputs(module: ZImageTransformer) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the smallest inputs that reach every parameter, for `module.init` or `eval_shape`."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return (
        array(1, PATCH, PATCH, module.channels),
        array(1),
        array(1, MULTIPLE, module.context_dim),
        array(1, MULTIPLE),
    )


def tensor_name(path: tuple[str, ...]) -> str:
    """Spell a leaf's path as the published weights do."""
    collection, first, *rest = path
    if first.endswith("_pad_token"):
        return first
    return published_name((collection, _BY_PATCH.get(first, first), *rest))
