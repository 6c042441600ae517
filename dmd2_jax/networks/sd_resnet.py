"""The convolutional parts of Stable Diffusion's U-Net and autoencoder.

Modules are called as the published weights call them: `resnets_0` here is `resnets.0` there.
"""

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.networks.layers import Conv, GroupNorm, Linear, upsample
from dmd2_jax.typing import Array, DType, Float

_NEAREST = (1, 1)  # the filter that repeats pixels


class ResnetBlock(nn.Module):
    """Two convolutions beside a skip, shifted by the time embedding if there is one.

    h = conv1(silu(norm1(x))) + time_emb_proj(silu(embedding))
    y = x + conv2(silu(norm2(h)))          conv_shortcut(x) where the channels change

    Attributes:
      channels: output channels.
      groups, eps: of the group norms.
      dtype: type of the computation.

    Source: He et al. 2016 (1603.05027); Rombach et al. 2022 (2112.10752).
    """

    channels: int
    groups: int
    eps: float
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b d"] | None = None
    ) -> Float[Array, "b h w c2"]:
        """Apply the block; `embedding` is the time's, before its activation."""
        h = nn.silu(GroupNorm(self.groups, self.eps, name="norm1")(x))
        h = Conv(self.channels, padding=1, dtype=self.dtype, name="conv1")(h)
        if embedding is not None:
            project = Linear(self.channels, dtype=self.dtype, name="time_emb_proj")
            h += project(nn.silu(embedding))[:, None, None]
        h = nn.silu(GroupNorm(self.groups, self.eps, name="norm2")(h))
        h = Conv(self.channels, padding=1, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, 1, dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """Halve an image by a convolution of stride 2.

    Attributes:
      symmetric: whether one zero is added on every side (the U-Net's way), or only below and on
        the right (the autoencoder's).
      dtype: type of the computation.
    """

    symmetric: bool = True
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Return an image of half the height and width."""
        if not self.symmetric:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        padding = 1 if self.symmetric else 0
        return Conv(x.shape[-1], stride=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Double an image by repeating its pixels, then convolve.

    Attributes:
      dtype: type of the computation.
    """

    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Return an image of twice the height and width."""
        x = upsample(x, _NEAREST)
        return Conv(x.shape[-1], padding=1, dtype=self.dtype, name="conv")(x)
