"""DINOv2's image encoder, whose features judge images as people do better than Inception's.

Modules are called as the published weights of transformers' Dinov2Model call them, with `_0` for
`.0`. Nothing here is trained, so the attention is written plainly.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.layers import Conv, LayerNorm, Linear
from dmd2_jax.networks.published_config import read_config, square_side
from dmd2_jax.networks.weight import weight
from dmd2_jax.typing import Array, DType, Float

__all__ = ["Dinov2", "Dinov2Size", "dinov2_from_config", "example_dinov2_inputs"]

_BICUBIC = -0.75  # torch's a of Keys's kernel


class Dinov2Size(NamedTuple):
    """The size of the transformer.

    Attributes:
      width: of a token.
      layers: their number.
      heads: attention heads.
      hidden: width of the feed-forward's inner layer.
      gated: whether its feed-forward is SwiGLU, as that of the giant is; else GELU.
      eps: of the layer norms.
      biased: whether query, key and value have biases.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    gated: bool
    eps: float
    biased: bool


class Dinov2(nn.Module):
    """DINOv2's encoder.

    Attributes:
      size: of the transformer.
      image_size: height and width of the images that its places are for.
      patch: height and width of a patch.
      channels: of the images.
      dtype: type of the computation; parameters and outputs are float32.

    Source: Oquab et al. 2023 (2304.07193).
    """

    size: Dinov2Size
    image_size: int
    patch: int
    channels: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """Return the class token after the final norm, which is the feature of an image.

        Args:
          images: [b, h, w, c], normalised by the mean and deviation of ImageNet; h and w are
            multiples of the patch. The places of other sizes are resized by torch's bicubic.

        Raises:
          ValueError: if they are of another size or number of channels.
        """
        if images.shape[-1] != self.channels or any(
            side % self.patch or not side for side in images.shape[1:3]
        ):
            raise Refused(
                f"images have shape {images.shape}, expected [b, h, w, {self.channels}] with h and "
                f"w multiples of {self.patch}; resize them."
            )
        places = self.image_size // self.patch
        embed = _Embeddings(self.size.width, self.patch, places, self.dtype, name="embeddings")
        x = _Encoder(self.size, self.dtype, name="encoder")(embed(images))
        return LayerNorm(self.size.eps, name="layernorm")(x[:, 0]).astype(jnp.float32)


class _Embeddings(nn.Module):
    """The class token and the patches' vectors, with their places'."""

    width: int
    patch: int
    places: int
    dtype: DType

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        draw, d = nn.initializers.normal(0.02), self.width
        tall, wide = (side // self.patch for side in images.shape[1:3])
        patches = _Patches(d, self.patch, self.dtype, name="patch_embeddings")(images)
        first = weight(self, "cls_token", draw, (1, 1, d), jnp.float32)
        table = weight(self, "position_embeddings", draw, (1, 1 + self.places**2, d), jnp.float32)
        grid = table[0, 1:].reshape(self.places, self.places, d)
        rows, columns = (
            jnp.asarray(_resized_places(self.places, n), jnp.float32) for n in (tall, wide)
        )
        highest = jax.lax.Precision.HIGHEST
        grid = jnp.einsum("yi,xj,ijd->yxd", rows, columns, grid, precision=highest)
        places = jnp.concatenate([table[:, :1], grid.reshape(1, tall * wide, d)], axis=1)
        first = jnp.broadcast_to(first, (len(images), 1, d)).astype(self.dtype)
        return jnp.concatenate([first, patches], axis=1) + places.astype(self.dtype)


class _Patches(nn.Module):
    """The vectors of patches, row by row."""

    width: int
    patch: int
    dtype: DType

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        cut = Conv(self.width, self.patch, stride=self.patch, dtype=self.dtype, name="projection")
        return cut(images).reshape(len(images), -1, self.width)


@functools.cache
def _resized_places(size: int, new_size: int) -> Float64[np.ndarray, "new_size size"]:
    """Return torch's bicubic weights along one axis: not antialiased, the border repeated."""
    matrix = np.zeros((new_size, size))
    for i in range(new_size):
        place = (i + 0.5) * size / new_size - 0.5
        first = math.floor(place) - 1
        for tap in range(first, first + 4):
            matrix[i, min(max(tap, 0), size - 1)] += _keys(abs(place - tap))
    return matrix


def _keys(x: float) -> float:
    a = _BICUBIC
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0


class _Encoder(nn.Module):
    """The layers."""

    size: Dinov2Size
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        for index in range(self.size.layers):
            x = _Layer(self.size, self.dtype, name=f"layer_{index}")(x)
        return x


class _Layer(nn.Module):
    """Self-attention and feed-forward of the normalised tokens, each scaled and added."""

    size: Dinov2Size
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        size, dtype = self.size, self.dtype
        read = _Attention(size, dtype, name="attention")(LayerNorm(size.eps, name="norm1")(x))
        x += _Scale(name="layer_scale1")(read)
        fed = _FeedForward(size, dtype, name="mlp")(LayerNorm(size.eps, name="norm2")(x))
        return x + _Scale(name="layer_scale2")(fed)


class _Scale(nn.Module):
    """A learned factor of each channel."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        factor = weight(self, "lambda1", nn.initializers.ones, x.shape[-1:], jnp.float32)
        return x * factor.astype(x.dtype)


class _Attention(nn.Module):
    """Multi-head self-attention."""

    size: Dinov2Size
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        size = self.size
        query, key, value = _Projections(size, self.dtype, name="attention")(x)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        logits /= math.sqrt(size.width // size.heads)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        read = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return _Output(size.width, self.dtype, name="output")(read)


class _Projections(nn.Module):
    """Query, key and value, each [b, n, heads, d]."""

    size: Dinov2Size
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Array, ...]:
        def project(name: str) -> Array:
            biased = self.size.biased
            layer = Linear(self.size.width, use_bias=biased, dtype=self.dtype, name=name)
            return layer(x).reshape(*x.shape[:2], self.size.heads, -1)

        return project("query"), project("key"), project("value")


class _Output(nn.Module):
    width: int
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return Linear(self.width, dtype=self.dtype, name="dense")(x)


class _FeedForward(nn.Module):
    """Two linear maps with GELU between them, or SwiGLU."""

    size: Dinov2Size
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        size = self.size

        def linear(features: int, name: str) -> Linear:
            return Linear(features, dtype=self.dtype, name=name)

        if size.gated:
            gate, h = jnp.split(linear(2 * size.hidden, "weights_in")(x), 2, axis=-1)
            return linear(size.width, "weights_out")(nn.silu(gate) * h)
        return linear(size.width, "fc2")(nn.gelu(linear(size.hidden, "fc1")(x), approximate=False))


_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
_SUPPORTED: dict[str, Any] = {"hidden_act": ("gelu",)}
_IGNORED = (
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
    *("attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate"),
    *("initializer_range", "layerscale_value", "use_mask_token", "id2label", "label2id"),
    *("apply_layernorm", "reshape_hidden_states", "out_features", "out_indices", "stage_names"),
)


def dinov2_from_config(config: Mapping[str, Any], *, dtype: DType = jnp.float32) -> Dinov2:
    """Build the encoder that a config.json of a Dinov2Model describes.

    Args:
      config: the file's contents; absent settings have transformers' defaults.
      dtype: type of the computation.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    config = {**config, "image_size": square_side(config.get("image_size", 224))}
    c = read_config(
        config,
        class_name="Dinov2Model",
        defaults=_DEFAULTS,
        supported=_SUPPORTED,
        ignored=_IGNORED,
    )
    width, heads = c["hidden_size"], c["num_attention_heads"]
    if width % heads or c["image_size"] < c["patch_size"]:
        raise Refused(
            f"hidden_size={width}, num_attention_heads={heads}, image_size={c['image_size']} and "
            f"patch_size={c['patch_size']}, expected a width that the heads divide and a patch "
            "within the image; correct config.json."
        )
    hidden = int(width * c["mlp_ratio"])
    if c["use_swiglu_ffn"]:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    size = Dinov2Size(
        width=width,
        layers=c["num_hidden_layers"],
        heads=heads,
        hidden=hidden,
        gated=c["use_swiglu_ffn"],
        eps=c["layer_norm_eps"],
        biased=c["qkv_bias"],
    )
    return Dinov2(size, c["image_size"], c["patch_size"], c["num_channels"], dtype)


def example_dinov2_inputs(network: Dinov2) -> tuple[jax.ShapeDtypeStruct]:
    """Return one image of one patch, which reaches every parameter."""
    shape = (1, network.patch, network.patch, network.channels)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)
