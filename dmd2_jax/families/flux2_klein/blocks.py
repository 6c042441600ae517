"""The two kinds of blocks of FLUX.2's transformer; their modulation is made once for all of a kind.

Modules are called as the published weights of diffusers' Flux2Transformer2DModel call them, with
`_0` for `.0`.
"""

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.networks.attention import attention
from dmd2_jax.networks.layers import Linear
from dmd2_jax.networks.mmdit import JointAttention, modulated, rotated
from dmd2_jax.networks.rms_norm import RmsNorm
from dmd2_jax.typing import Array, DType, Float

__all__ = ["DoubleBlock", "SingleBlock"]

Rotary = tuple[Array, Array]
Modulations = tuple[Array, ...]


def _gated(x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
    """Return silu(first half) * second half."""
    gate, value = jnp.split(x, 2, axis=-1)
    return nn.silu(gate) * value


class _FeedForward(nn.Module):
    hidden: int
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Return the gated layer of each token."""

        def linear(name: str, features: int) -> Linear:
            return Linear(features, use_bias=False, dtype=self.dtype, name=name)

        return linear("linear_out", x.shape[-1])(_gated(linear("linear_in", 2 * self.hidden)(x)))


class DoubleBlock(nn.Module):
    """Joint attention and a gated layer for each of prompt and image.

    Attributes:
      heads: of the attention.
      hidden: size of the gated layers.
      eps: of the norms.
      dtype: type of the computation; norms, rotation and softmax are float32.
    """

    heads: int
    hidden: int
    eps: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: tuple[Array, Array],
        modulations: tuple[Modulations, Modulations],
        rotary: Rotary,
    ) -> tuple[Array, Array]:
        """Apply the block to (prompt, image).

        Args:
          tokens: of both, [b, n, c].
          modulations: of both, each shift, scale and gate of the attention and of the gated layer.
          rotary: of the tokens [prompt, image].
        """
        context, x = tokens
        of_context, of_x = modulations
        settings = {"use_bias": False, "eps": self.eps, "name": "attn"}
        attend = JointAttention(self.heads, True, dtype=self.dtype, **settings)
        read, read_in = attend(
            modulated(x, of_x[0], of_x[1], self.eps),
            modulated(context, of_context[0], of_context[1], self.eps),
            rotary,
        )
        assert read_in is not None

        def rest(tokens: Array, read: Array, own: Modulations, name: str) -> Array:
            tokens = tokens + own[2] * read
            inner = modulated(tokens, own[3], own[4], self.eps)
            return tokens + own[5] * _FeedForward(self.hidden, self.dtype, name=name)(inner)

        return rest(context, read_in, of_context, "ff_context"), rest(x, read, of_x, "ff")


class _ParallelAttention(nn.Module):
    heads: int
    hidden: int
    eps: float
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], rotary: Rotary) -> Float[Array, "b n c"]:
        """Return attention and the gated layer, through one map in and one out."""
        width = x.shape[-1]
        into = Linear(
            3 * width + 2 * self.hidden, use_bias=False, dtype=self.dtype, name="to_qkv_mlp_proj"
        )
        *qkv, inner = jnp.split(into(x), [width, 2 * width, 3 * width], axis=-1)
        query, key, value = (it.reshape(*x.shape[:2], self.heads, -1) for it in qkv)
        query = rotated(RmsNorm(self.eps, name="norm_q")(query), *rotary)
        key = rotated(RmsNorm(self.eps, name="norm_k")(key), *rotary)
        read = attention(query, key, value).reshape(x.shape)
        both = jnp.concatenate([read, _gated(inner)], axis=-1)
        return Linear(width, use_bias=False, dtype=self.dtype, name="to_out")(both)


class SingleBlock(nn.Module):
    """Attention and a gated layer side by side, over prompt and image as one sequence.

    Attributes:
      heads, hidden, eps, dtype: as in `DoubleBlock`.
    """

    heads: int
    hidden: int
    eps: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], modulation: Modulations, rotary: Rotary
    ) -> Float[Array, "b n c"]:
        """Apply the block under shift, scale and gate."""
        shift, scale, gate = modulation
        attend = _ParallelAttention(self.heads, self.hidden, self.eps, self.dtype, name="attn")
        return x + gate * attend(modulated(x, shift, scale, self.eps), rotary)
