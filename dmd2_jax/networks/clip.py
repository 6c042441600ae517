"""CLIP's text and image transformers.

Modules are called as the published weights of transformers' CLIP models call them, with `_0` for
`.0`. Nothing here is trained, so the attention is written plainly.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.layers import Conv, Embedding, LayerNorm, Linear
from dmd2_jax.networks.weight import weight
from dmd2_jax.typing import Array, DType, Float, Int

__all__ = [
    "ACTIVATIONS",
    "Clip",
    "ClipText",
    "ClipVision",
    "ImageFeatures",
    "TextFeatures",
    "Transformer",
]


def _quick_gelu(x: Array) -> Array:
    return x * nn.sigmoid(1.702 * x)


def _gelu(x: Array) -> Array:
    return nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"gelu": _gelu, "quick_gelu": _quick_gelu}
"""By their names in config.json."""

_LEGACY_END = 2  # an eos_token_id of the first published configs, which is not the tokenizer's


class Transformer(NamedTuple):
    """The size of a transformer.

    Attributes:
      width: of a token.
      layers: their number.
      heads: attention heads.
      hidden: width of the feed-forward's inner layer.
      activation: a name of `ACTIVATIONS`.
      eps: of the layer norms.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    activation: str
    eps: float


class TextFeatures(NamedTuple):
    """What a text encoder makes of prompts.

    Attributes:
      hidden_states: layers + 1 arrays [b, n, d]: the embeddings, then each layer's output, without
        the final norm. SDXL reads hidden_states[-2].
      last_hidden_state: [b, n, d], the last layer's output after the final norm. SD 1.x reads it.
      pooled: [b, d], of the end token, after the final norm.
      text_embeds: [b, e], `pooled` projected; None for a model without projection.
    """

    hidden_states: tuple[Array, ...]
    last_hidden_state: Array
    pooled: Array
    text_embeds: Array | None


class ImageFeatures(NamedTuple):
    """What an image encoder makes of images.

    Attributes:
      last_hidden_state: [b, 1 + patches, d], without the final norm.
      pooled: [b, d], of the class token, after the final norm.
      image_embeds: [b, e], `pooled` projected, not normalised.
    """

    last_hidden_state: Array
    pooled: Array
    image_embeds: Array


class _Attention(nn.Module):
    """Multi-head self-attention; with `causal`, a token reads itself and those before it."""

    heads: int
    causal: bool
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        b, n, width = x.shape

        def project(name: str) -> Array:
            layer = Linear(width, dtype=self.dtype, name=name)
            return layer(x).reshape(b, n, self.heads, -1)

        query, key, value = project("q_proj"), project("k_proj"), project("v_proj")
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        logits /= math.sqrt(width // self.heads)
        if self.causal:
            logits = jnp.where(jnp.tril(jnp.ones((n, n), bool)), logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        read = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return Linear(width, dtype=self.dtype, name="out_proj")(read)


class _FeedForward(nn.Module):
    """Two linear maps with an activation between them."""

    size: Transformer
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        h = Linear(self.size.hidden, dtype=self.dtype, name="fc1")(x)
        h = ACTIVATIONS[self.size.activation](h)
        return Linear(self.size.width, dtype=self.dtype, name="fc2")(h)


class _Layer(nn.Module):
    """Self-attention and feed-forward, each of the normalised tokens, each added."""

    size: Transformer
    causal: bool
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        attend = _Attention(self.size.heads, self.causal, self.dtype, name="self_attn")
        x += attend(LayerNorm(self.size.eps, name="layer_norm1")(x))
        feed = _FeedForward(self.size, self.dtype, name="mlp")
        return x + feed(LayerNorm(self.size.eps, name="layer_norm2")(x))


class _Encoder(nn.Module):
    """The layers; returns their input and every output."""

    size: Transformer
    causal: bool
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Array, ...]:
        states = [x]
        for index in range(self.size.layers):
            layer = _Layer(self.size, self.causal, self.dtype, name=f"layers_{index}")
            states.append(layer(states[-1]))
        return tuple(states)


class _TextEmbeddings(nn.Module):
    """Tokens' and places' vectors, added."""

    vocabulary: int
    context: int
    width: int
    dtype: DType

    @nn.compact
    def __call__(self, input_ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        def table(rows: int, name: str) -> Embedding:
            return Embedding(rows, self.width, dtype=self.dtype, name=name)

        tokens = table(self.vocabulary, "token_embedding")(input_ids)
        places = table(self.context, "position_embedding")(jnp.arange(input_ids.shape[1]))
        return tokens + places


class _TextTransformer(nn.Module):
    """Embeddings, causal layers, final norm, and the state of the end token."""

    size: Transformer
    vocabulary: int
    context: int
    end_token: int
    dtype: DType

    @nn.compact
    def __call__(self, input_ids: Int[Array, "b n"]) -> TextFeatures:
        embeddings = _TextEmbeddings(
            self.vocabulary, self.context, self.size.width, self.dtype, name="embeddings"
        )
        encoder = _Encoder(self.size, True, self.dtype, name="encoder")
        states = encoder(embeddings(input_ids))
        last = LayerNorm(self.size.eps, name="final_layer_norm")(states[-1])
        # The first configs name a wrong end token; the right one has the largest id.
        ends = input_ids if self.end_token == _LEGACY_END else input_ids == self.end_token
        pooled = jnp.take_along_axis(last, jnp.argmax(ends, axis=1)[:, None, None], axis=1)[:, 0]
        states = tuple(state.astype(jnp.float32) for state in states)
        return TextFeatures(states, last.astype(jnp.float32), pooled.astype(jnp.float32), None)


class _VisionEmbeddings(nn.Module):
    """The class token and the patches' vectors, with their places'."""

    size: Transformer
    patch: int
    dtype: DType

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        width = self.size.width
        cut = Conv(
            width,
            self.patch,
            stride=self.patch,
            use_bias=False,
            dtype=self.dtype,
            name="patch_embedding",
        )
        patches = cut(images).reshape(images.shape[0], -1, width)
        first = weight(self, "class_embedding", nn.initializers.normal(0.02), (width,), jnp.float32)
        first = jnp.broadcast_to(first.astype(self.dtype), (images.shape[0], 1, width))
        tokens = jnp.concatenate([first, patches], axis=1)
        places = Embedding(tokens.shape[1], width, dtype=self.dtype, name="position_embedding")
        return tokens + places(jnp.arange(tokens.shape[1]))


class _VisionTransformer(nn.Module):
    """Embeddings, layers between two norms, and the state of the class token."""

    size: Transformer
    patch: int
    dtype: DType

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> tuple[Array, Array]:
        x = _VisionEmbeddings(self.size, self.patch, self.dtype, name="embeddings")(images)
        # The published name is spelled so.
        x = LayerNorm(self.size.eps, name="pre_layrnorm")(x)
        last = _Encoder(self.size, False, self.dtype, name="encoder")(x)[-1]
        return last, LayerNorm(self.size.eps, name="post_layernorm")(last[:, 0])


class ClipText(nn.Module):
    """CLIP's text encoder, with or without projection.

    Attributes:
      size: of the transformer.
      vocabulary: number of tokens.
      context: longest prompt, in tokens.
      end_token: id whose first place is pooled; 2: the largest id's.
      projection: size of `text_embeds`; None: no projection.
      dtype: type of the computation; parameters and outputs are float32.

    Source: Radford et al. 2021 (2103.00020), section 2.4.
    """

    size: Transformer
    vocabulary: int
    context: int
    end_token: int
    projection: int | None = None
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, input_ids: Int[Array, "b n"]) -> TextFeatures:
        """Encode prompts.

        Args:
          input_ids: [b, n] tokens, n <= context.

        Raises:
          ValueError: if there are more tokens than places.
        """
        if input_ids.ndim != 2 or input_ids.shape[1] > self.context:
            raise Refused(
                f"input_ids have shape {input_ids.shape}, expected [b, n] with n <= "
                f"{self.context}; truncate the prompts when they are tokenized."
            )
        transformer = _TextTransformer(
            self.size,
            self.vocabulary,
            self.context,
            self.end_token,
            self.dtype,
            name="text_model",
        )
        features = transformer(input_ids)
        if self.projection is None:
            return features
        project = Linear(self.projection, use_bias=False, dtype=self.dtype, name="text_projection")
        return features._replace(text_embeds=project(features.pooled).astype(jnp.float32))


class ClipVision(nn.Module):
    """CLIP's image encoder with projection.

    Attributes:
      size: of the transformer.
      image_size: height and width of the images.
      patch: height and width of a patch.
      channels: of the images.
      projection: size of `image_embeds`.
      dtype: type of the computation; parameters and outputs are float32.

    Source: Radford et al. 2021 (2103.00020), section 2.4.
    """

    size: Transformer
    image_size: int
    patch: int
    channels: int
    projection: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> ImageFeatures:
        """Encode images.

        Args:
          images: [b, h, w, c], normalised by the mean and deviation of CLIP's training data.

        Raises:
          ValueError: if they are of another size.
        """
        expected = (self.image_size, self.image_size, self.channels)
        if images.shape[1:] != expected:
            raise Refused(
                f"images have shape {images.shape}, expected [b, {', '.join(map(str, expected))}] "
                "(NHWC); resize and crop them."
            )
        transformer = _VisionTransformer(self.size, self.patch, self.dtype, name="vision_model")
        last, pooled = transformer(images)
        project = Linear(
            self.projection, use_bias=False, dtype=self.dtype, name="visual_projection"
        )
        embeds = project(pooled)
        return ImageFeatures(*(x.astype(jnp.float32) for x in (last, pooled, embeds)))


class Clip(nn.Module):
    """Both encoders and the scale of their similarity.

    The parameters of the two encoders lie side by side, as in the published weights.

    Attributes:
      text: the text encoder, with projection.
      vision: the image encoder.

    Source: Radford et al. 2021 (2103.00020), figure 3.
    """

    text: ClipText
    vision: ClipVision

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "b n"], images: Float[Array, "c h w d"]
    ) -> Float[Array, "c b"]:
        """Return each image's similarity to each prompt, times the learned scale."""
        text, image = self.text(input_ids).text_embeds, self.vision(images).image_embeds
        text /= jnp.linalg.norm(text, axis=-1, keepdims=True)
        image /= jnp.linalg.norm(image, axis=-1, keepdims=True)
        scale = weight(self, "logit_scale", nn.initializers.constant(math.log(1 / 0.07)), ())
        return jnp.exp(scale) * image @ text.T
