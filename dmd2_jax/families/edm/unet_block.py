"""The residual block that EDM's two U-Nets share."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.networks.attention import attention
from dmd2_jax.networks.layers import (
    ZEROS,
    Conv,
    GroupNorm,
    Init,
    Linear,
    downsample,
    num_groups,
    upsample,
)
from dmd2_jax.typing import Array, DType, Float


class BlockInits(NamedTuple):
    """Initial values of a block's layers.

    Attributes:
      kernel: kernels of all layers but the ones below.
      bias: biases of those layers.
      last_kernel: kernels of the second convolution and the attention's output, (nearly) zero so
        that every block starts as the identity.
      query_kernel: kernel of the attention's queries, keys and values.
    """

    kernel: Init
    bias: Init
    last_kernel: Init
    query_kernel: Init


class UNetBlock(nn.Module):
    """Two convolutions, modulated by the embedding, beside a skip; then self-attention.

    h = conv1(dropout(silu(modulate(conv0(silu(norm0(x))), embedding))))
    x = (h + skip(x)) * skip_scale
    x = (proj(attention(qkv(norm2(x)))) + x) * skip_scale          if num_heads > 0
    modulate(h) = norm1(h) (scale + 1) + shift   (adaptive_scale)   or   norm1(h + shift)

    Dropout acts exactly when `dropout` > 0 and the caller passes a `dropout` random key.

    Attributes:
      channels: output channels.
      inits: initial values.
      resample: "" or "up" or "down"; both conv0 and the skip filter first, then convolve.
      num_heads: attention heads; 0: no attention.
      skip_scale: factor after each addition.
      adaptive_scale: which of the two modulations.
      skip_conv: whether a resampling skip has a 1x1 convolution even if the channels stay.
      resample_filter: taps of the resampling filter.
      eps: of the group norms.
      dropout: probability.
      dtype: type of the computation.

    Source: Karras et al. 2022 (2206.00364), appendix F.
    """

    channels: int
    inits: BlockInits
    resample: str = ""
    num_heads: int = 0
    skip_scale: float = 1.0
    adaptive_scale: bool = True
    skip_conv: bool = False
    resample_filter: Sequence[int] = (1, 1)
    eps: float = 1e-5
    dropout: float = 0.0
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b d"]
    ) -> Float[Array, "b h2 w2 c2"]:
        """Apply the block to `x` under the noise and label `embedding`."""
        h = self._resample(nn.silu(self._norm("norm0", x)))
        h = self._conv("conv0", self.channels, 3, self.inits.kernel)(h)
        modulation = Linear(
            self.channels * (2 if self.adaptive_scale else 1),
            kernel_init=self.inits.kernel,
            bias_init=self.inits.bias,
            dtype=self.dtype,
            name="affine",
        )(embedding)[:, None, None]
        if self.adaptive_scale:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = nn.silu(shift + self._norm("norm1", h) * (scale + 1))
        else:
            h = nn.silu(self._norm("norm1", h + modulation))
        if self.dropout > 0:
            h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)
        h = self._conv("conv1", self.channels, 3, self.inits.last_kernel)(h)

        skip = self._resample(x)
        if x.shape[-1] != self.channels or (self.resample and self.skip_conv):
            skip = self._conv("skip", self.channels, 1, self.inits.kernel)(skip)
        x = (h + skip) * self.skip_scale
        return self._attend(x) if self.num_heads else x

    def _attend(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        qkv = self._conv("qkv", 3 * c, 1, self.inits.query_kernel)(self._norm("norm2", x))
        # The checkpoint's channel order: head, channel in head, then query / key / value.
        qkv = qkv.reshape(b, height * width, self.num_heads, c // self.num_heads, 3)
        attended = attention(qkv[..., 0], qkv[..., 1], qkv[..., 2]).reshape(x.shape)
        return (self._conv("proj", c, 1, self.inits.last_kernel)(attended) + x) * self.skip_scale

    def _resample(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        if not self.resample:
            return x
        return {"up": upsample, "down": downsample}[self.resample](x, self.resample_filter)

    def _norm(self, name: str, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return GroupNorm(num_groups(x.shape[-1]), self.eps, name=name)(x)

    def _conv(self, name: str, features: int, size: int, kernel_init: Init) -> Conv:
        bias_init = ZEROS if kernel_init == self.inits.last_kernel else self.inits.bias
        return Conv(
            features,
            size,
            padding=size // 2,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=self.dtype,
            name=name,
        )
