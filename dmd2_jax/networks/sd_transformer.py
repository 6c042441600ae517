"""The transformer of Stable Diffusion's U-Net: pixels attend to each other and to the prompt.

Modules are called as the published weights call them: `to_out_0` here is `to_out.0` there.
"""

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.networks.attention import attention
from dmd2_jax.networks.block_loop import BlockLoop, blocks_in_a_row
from dmd2_jax.networks.layers import Conv, GroupNorm, LayerNorm, Linear
from dmd2_jax.typing import Array, DType, Float

_NORM_EPS = 1e-6  # of the group norm before attention, whatever the U-Net's own


class MultiHeadAttention(nn.Module):
    """Attention of tokens to themselves or to a context, with its four linear maps.

    Attributes:
      heads: their number; divides the channels.
      use_bias: whether queries, keys and values have a bias.
      norm_groups: groups of a group norm of `x` before everything; 0: none.
      dtype: type of the computation; the softmax is float32.

    Source: Vaswani et al. 2017 (1706.03762), section 3.2.2.
    """

    heads: int
    use_bias: bool = False
    norm_groups: int = 0
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b m d"] | None = None
    ) -> Float[Array, "b n c"]:
        """Return what each token of `x` reads from `context` (None: from `x`)."""
        channels = x.shape[-1]
        if self.norm_groups:
            x = GroupNorm(self.norm_groups, _NORM_EPS, name="group_norm")(x)
        source = x if context is None else context

        def project(name: str, tokens: Array) -> Array:
            layer = Linear(channels, use_bias=self.use_bias, dtype=self.dtype, name=name)
            return layer(tokens).reshape(*tokens.shape[:2], self.heads, -1)

        read = attention(project("to_q", x), project("to_k", source), project("to_v", source))
        return Linear(channels, dtype=self.dtype, name="to_out_0")(read.reshape(x.shape))


class GatedGelu(nn.Module):
    """y = a gelu(b), (a, b) the halves of one linear map of x; the exact gelu.

    Attributes:
      features: size of y's last axis.
      dtype: type of the computation.

    Source: Shazeer 2020 (2002.05202), GEGLU.
    """

    features: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        """Apply the layer to each token."""
        both = Linear(2 * self.features, dtype=self.dtype, name="proj")(x)
        value, gate = jnp.split(both, 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """A gated layer of four times the width, and back.

    Attributes:
      dtype: type of the computation.
    """

    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Apply the layers to each token."""
        channels = x.shape[-1]
        h = GatedGelu(4 * channels, dtype=self.dtype, name="net_0")(x)
        return Linear(channels, dtype=self.dtype, name="net_2")(h)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the prompt, feed-forward, each normalised and added.

    Attributes:
      heads: of both attentions.
      dtype: type of the computation.
    """

    heads: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: Float[Array, "b m d"]
    ) -> Float[Array, "b n c"]:
        """Apply the block to the tokens `x` under the prompt's `context`."""

        def attend(name: str) -> MultiHeadAttention:
            return MultiHeadAttention(self.heads, dtype=self.dtype, name=name)

        x += attend("attn1")(LayerNorm(name="norm1")(x))
        x += attend("attn2")(LayerNorm(name="norm2")(x), context)
        return x + FeedForward(dtype=self.dtype, name="ff")(LayerNorm(name="norm3")(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over an image's pixels, between two maps, beside a skip.

    Attributes:
      heads: of every block.
      depth: number of blocks.
      groups: of the group norm.
      linear: whether the maps are stored as linear layers (SD 2, SDXL) or 1x1 convolutions (SD 1);
        they compute the same.
      remat: "none"; "block": recompute each block's activations in the backward pass; "full": as
        "block" here, and the copies of `scan_layers` too.
      scan_layers: loop over the blocks (networks/block_loop.py); a program of SDXL's ten is then as
        small as of one.
      dtype: type of the computation.

    Source: Rombach et al. 2022 (2112.10752), section 3.3 and appendix E.2.1.
    """

    heads: int
    depth: int
    groups: int
    linear: bool
    remat: str = "none"
    scan_layers: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Float[Array, "b m d"]
    ) -> Float[Array, "b h w c"]:
        """Apply the transformer to `x` under the prompt's `context`."""
        channels = x.shape[-1]

        def project(name: str) -> nn.Module:
            if self.linear:
                return Linear(channels, dtype=self.dtype, name=name)
            return Conv(channels, 1, dtype=self.dtype, name=name)

        h = project("proj_in")(GroupNorm(self.groups, _NORM_EPS, name="norm")(x))
        tokens = h.reshape(x.shape[0], -1, channels)
        tokens = blocks_in_a_row(
            self,
            TransformerBlock,
            {"heads": self.heads, "dtype": self.dtype},
            [f"transformer_blocks_{index}" for index in range(self.depth)],
            tokens,
            context,
            loop=BlockLoop(self.remat, self.scan_layers, self.dtype),
        )
        return x + project("proj_out")(tokens.reshape(x.shape))
