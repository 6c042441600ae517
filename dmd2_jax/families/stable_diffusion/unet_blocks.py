"""The levels of Stable Diffusion's U-Net: down, middle, up, with or without a transformer.

Modules are called as the published weights call them: `attentions_1` here is `attentions.1` there.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.networks.sd_resnet import Downsample, ResnetBlock, Upsample
from dmd2_jax.networks.sd_transformer import SpatialTransformer
from dmd2_jax.typing import Array, DType, Float


class BlockStyle(NamedTuple):
    """What all levels of one U-Net have in common.

    Attributes:
      groups: of every group norm.
      eps: of the residual blocks' group norms.
      linear: whether the transformers' outer maps are stored as linear layers.
      remat: of the U-Net.
      scan_layers: loop over the blocks of a transformer.
      dtype: type of the computation.
    """

    groups: int
    eps: float
    linear: bool
    remat: str
    scan_layers: bool
    dtype: DType

    def resnet(self, index: int, channels: int) -> ResnetBlock:
        """Return the level's residual block of this number."""
        block = ResnetBlock if self.remat == "none" else nn.remat(ResnetBlock)
        return block(channels, self.groups, self.eps, self.dtype, name=f"resnets_{index}")

    def transformer(self, index: int, heads: int, depth: int) -> SpatialTransformer:
        """Return the level's transformer of this number."""
        return SpatialTransformer(
            heads,
            depth,
            self.groups,
            self.linear,
            self.remat,
            self.scan_layers,
            self.dtype,
            name=f"attentions_{index}",
        )


class DownBlock(nn.Module):
    """A level of the encoder.

    Attributes:
      channels: output channels.
      layers: residual blocks.
      depth: transformer blocks after each residual block; 0: no transformer.
      heads: of the transformers.
      halve: whether the level ends with half the resolution.
      style: what the levels share.
    """

    channels: int
    layers: int
    depth: int
    heads: int
    halve: bool
    style: BlockStyle

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        embedding: Float[Array, "b d"],
        context: Float[Array, "b n e"],
    ) -> list[Array]:
        """Return the output of every layer, the level's last."""
        outputs = []
        for index in range(self.layers):
            x = self.style.resnet(index, self.channels)(x, embedding)
            if self.depth:
                x = self.style.transformer(index, self.heads, self.depth)(x, context)
            outputs.append(x)
        if self.halve:
            outputs.append(Downsample(dtype=self.style.dtype, name="downsamplers_0")(x))
        return outputs


class MidBlock(nn.Module):
    """The middle: a transformer between two residual blocks.

    Attributes:
      depth: transformer blocks.
      heads: of the transformer.
      style: what the levels share.
    """

    depth: int
    heads: int
    style: BlockStyle

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        embedding: Float[Array, "b d"],
        context: Float[Array, "b n e"],
    ) -> Float[Array, "b h w c"]:
        """Apply the block."""
        channels = x.shape[-1]
        x = self.style.resnet(0, channels)(x, embedding)
        x = self.style.transformer(0, self.heads, self.depth)(x, context)
        return self.style.resnet(1, channels)(x, embedding)


class UpBlock(nn.Module):
    """A level of the decoder; each residual block also reads one of the encoder's outputs.

    Attributes:
      channels: output channels.
      layers: residual blocks.
      depth: transformer blocks after each residual block; 0: no transformer.
      heads: of the transformers.
      double: whether the level ends with twice the resolution.
      style: what the levels share.
    """

    channels: int
    layers: int
    depth: int
    heads: int
    double: bool
    style: BlockStyle

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: list[Array],
        embedding: Float[Array, "b d"],
        context: Float[Array, "b n e"],
    ) -> Float[Array, "b h2 w2 c2"]:
        """Apply the level to `x` and to its `layers` skips, in the order of the encoder."""
        for index, skip in enumerate(reversed(skips)):
            x = jnp.concatenate([x, skip], axis=-1)
            x = self.style.resnet(index, self.channels)(x, embedding)
            if self.depth:
                x = self.style.transformer(index, self.heads, self.depth)(x, context)
        return Upsample(dtype=self.style.dtype, name="upsamplers_0")(x) if self.double else x
