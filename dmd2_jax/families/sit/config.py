"""The transformer of a diffusers DiTTransformer2DModel's config.json, or of a recipe's settings."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import sides
from dmd2_jax.families.sit.transformer import ClassTransformer
from dmd2_jax.networks.published_config import read_config
from dmd2_jax.typing import DType

__all__ = ["CLASS_NAME", "config_of", "example_inputs", "transformer_from_config"]

CLASS_NAME = "DiTTransformer2DModel"

_DEFAULTS = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-5,
}
_SUPPORTED = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "dropout": (0.0,),
    "norm_elementwise_affine": (False,),
    "norm_type": ("ada_norm_zero",),
    "upcast_attention": (False, True),  # the softmax is float32 here in any case
}
_IGNORED = ("norm_num_groups",)  # no group norm is left in this class
_SHARED = "_shared_embedding"
"""A note of ours: all blocks share one embedding, as in the original programs."""


def transformer_from_config(
    config: Mapping[str, Any], *, dtype: DType = jnp.float32, remat: str = "none"
) -> ClassTransformer:
    """Build the transformer that a config.json of a DiTTransformer2DModel describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.
      remat: "none", "block" or "full", see `ClassTransformer`.

    Returns:
      The network, without weights.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    c = read_config(
        config,
        class_name=CLASS_NAME,
        defaults=_DEFAULTS,
        supported=_SUPPORTED,
        ignored=_IGNORED,
    )
    channels = c["in_channels"]
    out_channels = channels if c["out_channels"] is None else c["out_channels"]
    if out_channels not in (channels, 2 * channels):
        raise Refused(
            f"out_channels={out_channels}, expected in_channels={channels}, or twice as many where "
            "the variance is learned; use such a network."
        )
    width = c["num_attention_heads"] * c["attention_head_dim"]
    if width % 4:
        raise Refused(
            f"num_attention_heads x attention_head_dim = {width}, expected a multiple of 4, by "
            "which places are written; correct config.json."
        )
    return ClassTransformer(
        channels=channels,
        out_channels=out_channels,
        patch=c["patch_size"],
        width=width,
        depth=c["num_layers"],
        heads=c["num_attention_heads"],
        num_classes=c["num_embeds_ada_norm"],
        shared=bool(config.get(_SHARED, False)),
        eps=c["norm_eps"],
        dtype=dtype,
        remat=remat,
    )


def config_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of the network that a recipe's settings describe.

    Args:
      settings: every key of `settings.defaults`.
    """
    channels = settings["image_channels"]
    return {
        "_class_name": CLASS_NAME,
        _SHARED: True,
        "num_attention_heads": settings["heads"],
        "attention_head_dim": settings["width"] // settings["heads"],
        "in_channels": channels,
        "out_channels": channels * (2 if settings["learned_variance"] else 1),
        "num_layers": settings["depth"],
        "sample_size": max(sides(settings["resolution"])),
        "patch_size": settings["patch"],
        "num_embeds_ada_norm": settings["num_classes"],
        "norm_eps": 1e-6,
    }


def example_inputs(module: ClassTransformer) -> tuple[jax.ShapeDtypeStruct | None, ...]:
    """Return the smallest inputs that reach every parameter, for `module.init` or `eval_shape`."""
    image = jax.ShapeDtypeStruct((1, module.patch, module.patch, module.channels), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32) if module.num_classes else None
    return image, jax.ShapeDtypeStruct((1,), jnp.float32), label
