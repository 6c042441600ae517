"""From the config.json of a transformers CLIP model to the network.

Settings that these builders do not read (tokens for generation, dropout, versions) do not change
what the networks compute, and configs written by old versions are full of them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.clip import ACTIVATIONS, Clip, ClipText, ClipVision, Transformer
from dmd2_jax.networks.published_config import check_kinds
from dmd2_jax.typing import DType

__all__ = [
    "clip_from_config",
    "example_clip_inputs",
    "example_text_inputs",
    "example_vision_inputs",
    "text_from_config",
    "vision_from_config",
]

_COMMON: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "num_hidden_layers": 12,
}
_TEXT: dict[str, Any] = {
    **_COMMON,
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
    "projection_dim": 512,
}
_VISION: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 512,
}
_PROJECTION = 512


def text_from_config(
    config: Mapping[str, Any], *, projection: bool, dtype: DType = jnp.float32
) -> ClipText:
    """Build the text encoder that a config.json of CLIPTextModel(WithProjection) describes.

    Args:
      config: the file's contents, or that of a CLIPModel; absent settings have transformers'
        defaults.
      projection: whether the model projects its pooled state.
      dtype: type of the computation.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    c = _read(config, "text_config", _TEXT)
    return ClipText(
        size=_transformer(c),
        vocabulary=c["vocab_size"],
        context=c["max_position_embeddings"],
        end_token=c["eos_token_id"],
        projection=c["projection_dim"] if projection else None,
        dtype=dtype,
    )


def vision_from_config(config: Mapping[str, Any], *, dtype: DType = jnp.float32) -> ClipVision:
    """Build the image encoder that a config.json of CLIPVisionModelWithProjection describes.

    Args:
      config: the file's contents, or that of a CLIPModel.
      dtype: type of the computation.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    c = _read(config, "vision_config", _VISION)
    if c["image_size"] % c["patch_size"]:
        raise Refused(
            f"image_size={c['image_size']}, expected a multiple of patch_size={c['patch_size']}; "
            "correct config.json."
        )
    return ClipVision(
        size=_transformer(c),
        image_size=c["image_size"],
        patch=c["patch_size"],
        channels=c["num_channels"],
        projection=c["projection_dim"],
        dtype=dtype,
    )


def clip_from_config(config: Mapping[str, Any], *, dtype: DType = jnp.float32) -> Clip:
    """Build both encoders that a config.json of a CLIPModel describes.

    Raises:
      ValueError: if the config asks for what these networks do not do, or contradicts itself.
    """
    # The two parts' own projection_dim is not used by a CLIPModel.
    common = {"projection_dim": config.get("projection_dim", _PROJECTION)}
    text, vision = (
        {**(_part(config, name) or {}), **common} for name in ("text_config", "vision_config")
    )
    return Clip(
        text_from_config(text, projection=True, dtype=dtype),
        vision_from_config(vision, dtype=dtype),
    )


def example_text_inputs(text: ClipText) -> tuple[jax.ShapeDtypeStruct]:
    """Return the smallest prompt that reaches every parameter."""
    return (jax.ShapeDtypeStruct((1, text.context), jnp.int32),)


def example_vision_inputs(vision: ClipVision) -> tuple[jax.ShapeDtypeStruct]:
    """Return one image."""
    shape = (1, vision.image_size, vision.image_size, vision.channels)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)


def example_clip_inputs(clip: Clip) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return one prompt and one image."""
    return (*example_text_inputs(clip.text), *example_vision_inputs(clip.vision))


def _read(config: Mapping[str, Any], part: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of one of the two encoders, whose file may be that of both."""
    its = _part(config, part) or config
    check_kinds(its, defaults, f"CLIP model's {part}")
    return {**defaults, **its}


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    part = config.get(name)
    if part is not None and not isinstance(part, Mapping):
        raise Refused(
            f"config of a CLIPModel has {name}={str(part)[:40]!r}, expected its settings; download "
            "it again."
        )
    return part


def _transformer(c: Mapping[str, Any]) -> Transformer:
    if c["hidden_act"] not in ACTIVATIONS:
        raise Refused(
            f"hidden_act={c['hidden_act']!r}, expected one of {sorted(ACTIVATIONS)}; use the text "
            "encoder of SD 1.x, SD 2.x or SDXL, or an OpenAI or OpenCLIP model."
        )
    if c["hidden_size"] % c["num_attention_heads"]:
        raise Refused(
            f"hidden_size={c['hidden_size']}, expected a multiple of num_attention_heads="
            f"{c['num_attention_heads']}; correct config.json."
        )
    return Transformer(
        width=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        hidden=c["intermediate_size"],
        activation=c["hidden_act"],
        eps=c["layer_norm_eps"],
    )
