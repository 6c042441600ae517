"""The block of Z-Image's transformer: attention and a gated layer, each between two norms.

Modules are called as the published weights of diffusers' ZImageTransformer2DModel call them, with
`_0` for `.0`.
"""

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.networks.attention import attention
from dmd2_jax.networks.layers import Linear
from dmd2_jax.networks.mmdit import rotated
from dmd2_jax.networks.rms_norm import RmsNorm
from dmd2_jax.typing import Array, DType, Float, Int

__all__ = ["ZImageBlock"]

_QK_EPS = 1e-5  # whatever norm_eps says


class _Attention(nn.Module):
    heads: int
    qk_norm: bool
    dtype: DType

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        rotary: tuple[Array, Array],
        lengths: Int[Array, " b"] | None,
    ) -> Float[Array, "b n c"]:
        """Return what each token reads of the first `lengths` ones."""

        def project(name: str, norm: str) -> Array:
            layer = Linear(x.shape[-1], use_bias=False, dtype=self.dtype, name=name)
            heads = layer(x).reshape(*x.shape[:2], self.heads, -1)
            return RmsNorm(_QK_EPS, name=norm)(heads) if self.qk_norm and norm else heads

        query, key = (rotated(project(f"to_{k}", f"norm_{k}"), *rotary) for k in "qk")
        read = attention(query, key, project("to_v", ""), lengths).reshape(x.shape)
        return Linear(x.shape[-1], use_bias=False, dtype=self.dtype, name="to_out_0")(read)


class _FeedForward(nn.Module):
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Return (silu(x A) (x C)) B of each token."""
        width = x.shape[-1]

        def linear(name: str, features: int) -> Linear:
            return Linear(features, use_bias=False, dtype=self.dtype, name=name)

        hidden = int(width / 3 * 8)  # in this order, as the published sizes are rounded
        return linear("w2", width)(nn.silu(linear("w1", hidden)(x)) * linear("w3", hidden)(x))


class ZImageBlock(nn.Module):
    """Attention and a gated layer; with a condition both are scaled before and gated after.

    Attributes:
      heads: of the attention.
      eps: of the norms around both.
      qk_norm: whether queries and keys are normalised, a head each.
      modulation: whether there is a condition.
      dtype: type of the computation; norms, rotation and softmax are float32.

    Source: the weights of Z-Image as diffusers reads them; Cai et al. 2025 (2511.22699).
    """

    heads: int
    eps: float
    qk_norm: bool
    modulation: bool = True
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        condition: Float[Array, "b d"],
        rotary: tuple[Array, Array],
        lengths: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b n c"]:
        """Apply the block.

        Args:
          x: the tokens.
          condition: the embedded time; without modulation it is not used.
          rotary: cosines and sines of the tokens' places.
          lengths: how many tokens, the first ones, are read; None: all.
        """

        def norm(name: str) -> RmsNorm:
            return RmsNorm(self.eps, name=name)

        attend = _Attention(self.heads, self.qk_norm, self.dtype, name="attention")
        feed = _FeedForward(self.dtype, name="feed_forward")
        if not self.modulation:
            x = x + norm("attention_norm2")(attend(norm("attention_norm1")(x), rotary, lengths))
            return x + norm("ffn_norm2")(feed(norm("ffn_norm1")(x)))
        layer = Linear(4 * x.shape[-1], dtype=self.dtype, name="adaLN_modulation_0")
        scale, gate, scale_mlp, gate_mlp = jnp.split(layer(condition)[:, None], 4, axis=-1)
        read = attend(norm("attention_norm1")(x) * (1 + scale), rotary, lengths)
        x = x + jnp.tanh(gate) * norm("attention_norm2")(read)
        inner = feed(norm("ffn_norm1")(x) * (1 + scale_mlp))
        return x + jnp.tanh(gate_mlp) * norm("ffn_norm2")(inner)
