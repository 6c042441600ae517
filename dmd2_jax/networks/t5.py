"""T5's text encoder, of release 1.1: the one that SD 3 and FLUX.1 read their prompts with.

Modules are called as the published weights of transformers' T5EncoderModel call them, with `_0` for
`.0`. Paddings are read like any other token, as the pipelines of both have it.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.layers import Embedding, Linear
from dmd2_jax.networks.published_config import check_kinds
from dmd2_jax.networks.rms_norm import RmsNorm
from dmd2_jax.typing import Array, DType, Float, Int

__all__ = ["T5Encoder", "example_t5_inputs", "relative_buckets", "t5_from_config"]

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}


def relative_buckets(tokens: int, buckets: int, most: int) -> Int[np.ndarray, "q k"]:
    """Return the bucket of the distance from each token to each.

    Half of the buckets are for tokens that come after. Of each half, half are for the distances 0,
    1, 2, ... exactly, the others for ranges that grow up to `most`, and all beyond.

    Args:
      tokens: their number n.
      buckets: their number.
      most: the distance from which on all are one.

    Returns:
      [n, n] int32, row: the token that reads.

    Source: Raffel et al. 2020 (1910.10683), section 2.1.
    """
    distance = np.arange(tokens)[None] - np.arange(tokens)[:, None]
    half = buckets // 2
    exact, far = half // 2, np.abs(distance)
    # In float32 as the published programs have it: a border may fall on either side.
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    scaled = ratio / np.float32(math.log(most / exact)) * np.float32(half - exact)
    large = np.minimum(exact + scaled.astype(np.int32), half - 1)
    return (np.where(far < exact, far, large) + half * (distance > 0)).astype(np.int32)


class _SelfAttention(nn.Module):
    heads: int
    size: int
    bias: tuple[int, int] | None
    dtype: DType

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], bias: Float[Array, "h n n"]
    ) -> tuple[Array, Array]:
        """Return what the tokens read, and the bias of their distances: the given or its own."""
        if self.bias is not None:
            table = Embedding(self.bias[0], self.heads, name="relative_attention_bias")
            bias = table(jnp.asarray(relative_buckets(x.shape[1], *self.bias))).transpose(2, 0, 1)

        def linear(name: str, features: int) -> Linear:
            return Linear(features, use_bias=False, dtype=self.dtype, name=name)

        def project(name: str) -> Array:
            return linear(name, self.heads * self.size)(x).reshape(*x.shape[:2], self.heads, -1)

        logits = jnp.einsum(
            "bqhd,bkhd->bhqk", project("q"), project("k"), preferred_element_type=jnp.float32
        )
        weights = nn.softmax(logits + bias).astype(self.dtype)
        read = jnp.einsum("bhqk,bkhd->bqhd", weights, project("v"))
        return linear("o", x.shape[-1])(read.reshape(*x.shape[:2], -1)), bias


class _AttentionLayer(nn.Module):
    heads: int
    size: int
    bias: tuple[int, int] | None
    eps: float
    dtype: DType

    @nn.compact
    def __call__(self, x: Array, bias: Array) -> tuple[Array, Array]:
        """Return the tokens after the layer, and the bias."""
        attend = _SelfAttention(self.heads, self.size, self.bias, self.dtype, name="SelfAttention")
        read, bias = attend(RmsNorm(self.eps, name="layer_norm")(x), bias)
        return x + read, bias


class _GatedGelu(nn.Module):
    hidden: int
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Return gelu(x A) (x B) C."""

        def linear(name: str, features: int) -> Linear:
            return Linear(features, use_bias=False, dtype=self.dtype, name=name)

        gate = nn.gelu(linear("wi_0", self.hidden)(x), approximate=True)
        return linear("wo", x.shape[-1])(gate * linear("wi_1", self.hidden)(x))


class _FeedForwardLayer(nn.Module):
    hidden: int
    eps: float
    dtype: DType

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the tokens after the layer."""
        layer = _GatedGelu(self.hidden, self.dtype, name="DenseReluDense")
        return x + layer(RmsNorm(self.eps, name="layer_norm")(x))


class _Block(nn.Module):
    encoder: "T5Encoder"
    first: bool

    @nn.compact
    def __call__(self, x: Array, bias: Array) -> tuple[Array, Array]:
        """Return the tokens after the block, and the bias of the first, which all share."""
        e = self.encoder
        own = (e.buckets, e.most) if self.first else None
        attend = _AttentionLayer(e.heads, e.head_size, own, e.eps, e.dtype, name="layer_0")
        x, bias = attend(x, bias)
        return _FeedForwardLayer(e.hidden, e.eps, e.dtype, name="layer_1")(x), bias


class _Stack(nn.Module):
    encoder: "T5Encoder"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the tokens after all blocks and the last norm."""
        bias = jnp.zeros(())  # the first block has its own
        for number in range(self.encoder.layers):
            x, bias = _Block(self.encoder, number == 0, name=f"block_{number}")(x, bias)
        return RmsNorm(self.encoder.eps, name="final_layer_norm")(x)


class T5Encoder(nn.Module):
    """The encoder of T5 1.1.

    Attributes:
      vocabulary: number of tokens that it knows.
      width: size of a token.
      layers, heads, head_size, hidden: of the blocks.
      buckets, most: see `relative_buckets`.
      eps: of the norms.
      dtype: type of the computation; norms and softmax are float32.

    Source: Raffel et al. 2020 (1910.10683); the gated layer is Shazeer 2020 (2002.05202).
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    head_size: int
    hidden: int
    buckets: int
    most: int
    eps: float = 1e-6
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """Return the last hidden state after its norm, float32."""
        table = Embedding(self.vocabulary, self.width, dtype=self.dtype, name="shared")
        settings = self.clone(parent=None, name=None)
        return _Stack(settings, name="encoder")(table(ids)).astype(jnp.float32)


def t5_from_config(config: Mapping[str, Any], *, dtype: DType = jnp.float32) -> T5Encoder:
    """Build the encoder that a config.json of a T5EncoderModel describes.

    Args:
      config: the file's contents; absent settings have transformers' defaults.
      dtype: type of the computation.

    Raises:
      ValueError: if the config asks for what this network does not do.
    """
    # What else such a file holds says how a decoder writes, how dropout trains, or who wrote it.
    check_kinds(config, _DEFAULTS, "T5EncoderModel")
    c = _DEFAULTS | dict(config)
    if c["feed_forward_proj"] != "gated-gelu":
        raise Refused(
            f"feed_forward_proj={c['feed_forward_proj']!r}, expected 'gated-gelu' as in T5 1.1; "
            "take the encoder of the pipeline's own release."
        )
    return T5Encoder(
        vocabulary=c["vocab_size"],
        width=c["d_model"],
        layers=c["num_layers"],
        heads=c["num_heads"],
        head_size=c["d_kv"],
        hidden=c["d_ff"],
        buckets=c["relative_attention_num_buckets"],
        most=c["relative_attention_max_distance"],
        eps=c["layer_norm_epsilon"],
        dtype=dtype,
    )


def example_t5_inputs(encoder: T5Encoder) -> tuple[jax.ShapeDtypeStruct]:
    """Return the shortest prompt."""
    return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)
