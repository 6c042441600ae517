"""The parts that every network of this folder is built from.

Parameters are float32; `dtype` is the type of the computation. Statistics of the group norms,
the softmax of the attention and the noise embeddings are float32 whatever `dtype` says.
Images are NHWC, convolution kernels HWIO, linear kernels [in, out].
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import CONSTANTS
from dmd2_jax.networks.conv import conv2d
from dmd2_jax.networks.weight import weight
from dmd2_jax.runtime.gathering import gathered
from dmd2_jax.typing import Array, DType, Float, Int, Key


class Init(NamedTuple):
    """Initial values: gain * scale(fans) * variates of U(-1, 1) or N(0, 1).

    Attributes:
      gain: factor; 0 gives zeros.
      fan: "in": scale 1 / sqrt(fan_in), torch's default; "both": sqrt(6 / (fan_in + fan_out)),
        Xavier's; "none": 1.
      distribution: "uniform" or "normal".

    Source: He et al. 2015 (1502.01852); Glorot and Bengio 2010, equation 16.
    """

    gain: float = 1.0
    fan: str = "in"
    distribution: str = "uniform"

    def scale(self, kernel_shape: tuple[int, ...]) -> float:
        """Return the factor of the standard variates for a layer with this kernel."""
        *window, channels_in, channels_out = kernel_shape
        fan_in, fan_out = math.prod(window) * channels_in, math.prod(window) * channels_out
        by_fan = {
            "in": 1.0 / math.sqrt(fan_in),
            "both": math.sqrt(6.0 / (fan_in + fan_out)),
            "none": 1.0,
        }
        return self.gain * by_fan[self.fan]

    def __call__(self, key: Key, shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> Array:
        """Draw a kernel, or a bias of the layer with that kernel; float32."""
        scale = self.scale(kernel_shape)
        if self.distribution == "normal":
            return scale * jax.random.normal(key, shape, jnp.float32)
        return scale * jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)


FAN_IN = Init()
ZEROS = Init(gain=0.0)

LORA = "lora"
"""The collection where a linear layer or convolution finds its low-rank adapter, if it has one:
"down", a layer of the same kind with few output features, and "up", a map from these to the output
(networks/lora.py)."""

ADDED = "added"
"""The collection where a linear layer finds "input" [b, c], which is added to each sample's input
(networks/guidance_embedding.py)."""


def _adapter(layer: nn.Module, dtype: DType) -> tuple[Array, Array]:
    """Return a layer's low-rank adapter, down and up."""
    names = ("down", "up")
    down, up = (gathered(layer.get_variable(LORA, n), LORA, *layer.path, n) for n in names)
    return down.astype(dtype), up.astype(dtype)


class Linear(nn.Module):
    """y = x W + b on the last axis, W [in, out].

    Attributes:
      features: size of the output's last axis.
      use_bias: whether there is a b.
      kernel_init, bias_init: initial values; the bias may depend on the kernel's fans.
      dtype: type of the computation and of the output.
    """

    features: int
    use_bias: bool = True
    kernel_init: Init = FAN_IN
    bias_init: Init = FAN_IN
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch d"]:
        """Apply the layer to the last axis of `x`."""
        shape = (x.shape[-1], self.features)
        kernel = weight(self, "kernel", self.kernel_init, shape, shape)
        if self.has_variable(ADDED, "input"):
            x = x + self.get_variable(ADDED, "input")
        x = x.astype(self.dtype)
        y = x @ kernel.astype(self.dtype)
        if self.has_variable(LORA, "down"):
            down, up = _adapter(self, self.dtype)
            y += (x @ down) @ up
        if self.use_bias:
            y += weight(self, "bias", self.bias_init, shape[-1:], shape).astype(self.dtype)
        return y


class Conv(nn.Module):
    """A 2-D convolution.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel, or one number for both.
      stride: step in both directions.
      padding: zeros on every side.
      down_filter: taps of a low-pass filter; if given, the convolution is followed by filtering
        and halving before the bias is added (the fused form of EDM's auxiliary residual path).
      use_bias: whether a bias is added.
      kernel_init, bias_init, dtype: as in `Linear`.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    stride: int = 1
    padding: int = 0
    down_filter: Sequence[int] | None = None
    use_bias: bool = True
    kernel_init: Init = FAN_IN
    bias_init: Init = FAN_IN
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Convolve `x`."""
        size = self.kernel_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (height, width, x.shape[-1], self.features)
        kernel = weight(self, "kernel", self.kernel_init, shape, shape).astype(self.dtype)
        pad = ((self.padding, self.padding), (self.padding, self.padding))
        x = x.astype(self.dtype)
        y = conv2d(x, kernel, stride=self.stride, padding=pad)
        if self.has_variable(LORA, "down"):
            down, up = _adapter(self, self.dtype)
            y += conv2d(x, down, stride=self.stride, padding=pad) @ up[0, 0]
        if self.down_filter is not None:
            y = downsample(y, self.down_filter, padding=0)
        if self.use_bias:
            y += weight(self, "bias", self.bias_init, shape[-1:], shape).astype(self.dtype)
        return y


def group_norm(
    x: Float[Array, "b *space c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    groups: int,
    eps: float,
) -> Float[Array, "b *space c"]:
    """Normalise each sample's groups of neighbouring channels to mean 0 and variance 1.

    y = (x - mean) / sqrt(variance + eps) * scale + bias, statistics over space and the group.

    Args:
      x: [b, ..., c].
      scale, bias: [c].
      groups: number of groups; divides c.
      eps: added to the variance.

    Returns:
      [b, ..., c] in the dtype of x.

    Source: Wu and He 2018 (1803.08494).
    """
    space = tuple(range(1, x.ndim - 1))

    def group_mean(values: Array) -> Array:
        # Space first, channels after: the large reduction keeps channels in its fast lanes.
        per_channel = values.mean(space, keepdims=True)
        grouped = per_channel.reshape(*per_channel.shape[:-1], groups, -1)
        mean = jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape)
        return mean.reshape(per_channel.shape)

    centred = x.astype(jnp.float32)
    centred -= group_mean(centred)
    variance = group_mean(jnp.square(centred))
    return (centred * (jax.lax.rsqrt(variance + eps) * scale) + bias).astype(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation with a learned scale and bias.

    Attributes:
      groups: number of groups; divides the channels.
      eps: added to the variance.
    """

    groups: int
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        """Normalise `x`; the result has its dtype."""
        scale = weight(self, "scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = weight(self, "bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return group_norm(x, scale, bias, groups=self.groups, eps=self.eps)


class LayerNorm(nn.Module):
    """Normalise the last axis to mean 0 and variance 1, with a learned scale and bias.

    y = (x - mean) / sqrt(variance + eps) * scale + bias, in float32.

    Attributes:
      eps: added to the variance.

    Source: Ba et al. 2016 (1607.06450).
    """

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalise `x`; the result has its dtype."""
        scale = weight(self, "scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = weight(self, "bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        centred = x.astype(jnp.float32)
        centred -= centred.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(x.dtype)


class Embedding(nn.Module):
    """A table of vectors, one a row.

    Attributes:
      rows: number of vectors.
      features: size of a vector.
      scale: standard deviation of the normal initial values.
      dtype: type of the output.
    """

    rows: int
    features: int
    scale: float = 0.02
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, index: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        """Return the rows of `index`; an index outside the table gives NaN, never another row."""
        init = nn.initializers.normal(self.scale)
        table = weight(self, "embedding", init, (self.rows, self.features), jnp.float32)
        return table.at[index].get(mode="fill", fill_value=jnp.nan).astype(self.dtype)


def num_groups(channels: int) -> int:
    """Return EDM's number of groups, min(32, channels // 4).

    Raises:
      ValueError: if that does not divide the channels.
    """
    groups = max(1, min(32, channels // 4))
    if channels % groups:
        raise Refused(
            f"channels={channels} cannot be split into min(32, channels // 4)={groups} groups; "
            "make model_channels a multiple of 4 (of 32 from 128 channels on)."
        )
    return groups


def positional_embedding(
    values: Float[Array, " b"], features: int, *, endpoint: bool, max_period: float = 1e4
) -> Float[Array, "b d"]:
    """Embed scalars as [cos(v f), sin(v f)], f_i = max_period^(-i / n), cosines first.

    Args:
      values: [b].
      features: even size d of the embedding; there are d / 2 frequencies.
      endpoint: whether the last frequency is exactly 1 / max_period (n = d / 2 - 1) or one step
        short of it (n = d / 2).
      max_period: ratio of the first frequency to the one that follows the last.

    Returns:
      [b, d] float32.

    Source: Vaswani et al. 2017 (1706.03762), section 3.5.
    """
    half = features // 2
    # In float32 as the field computes it: the exponents' rounding is part of the weights.
    exponents = np.arange(half, dtype=np.float32) / np.float32(half - int(endpoint))
    angles = values.astype(jnp.float32)[:, None] * (1.0 / max_period) ** exponents
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class FourierEmbedding(nn.Module):
    """Embed scalars as [cos(2 pi v f), sin(2 pi v f)] with fixed random frequencies f.

    The frequencies are a variable of the `constants` collection: they travel with the weights
    and are never trained (`dmd2_jax.denoiser.trainable_mask`).

    Attributes:
      features: even size of the embedding.
      scale: standard deviation of the frequencies at initialisation.

    Source: Tancik et al. 2020 (2006.10739); scale 16 as in Song et al. 2021 (2011.13456).
    """

    features: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, values: Float[Array, " b"]) -> Float[Array, "b d"]:
        """Return the embedding [b, features], float32, cosines first."""

        def init() -> Array:
            return self.scale * jax.random.normal(self.make_rng("params"), (self.features // 2,))

        frequencies = jax.lax.stop_gradient(self.variable(CONSTANTS, "freqs", init).value)
        angles = values.astype(jnp.float32)[:, None] * (2.0 * math.pi * frequencies)
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _taps(resample_filter: Sequence[int]) -> np.ndarray:
    """Return the 1-D filter, scaled to sum 1, after checking that its length is even."""
    if not resample_filter or len(resample_filter) % 2:
        raise Refused(
            f"resample_filter={tuple(resample_filter)} has {len(resample_filter)} taps, expected "
            "an even number; (1, 1) is a box and (1, 3, 3, 1) a binomial filter."
        )
    taps = np.asarray(resample_filter, np.float32)
    return taps / taps.sum()


def downsample(
    x: Float[Array, "b h w c"], resample_filter: Sequence[int], *, padding: int | None = None
) -> Float[Array, "b h2 w2 c"]:
    """Filter both image axes and keep every second sample.

    Along each axis y[m] = sum_i f[i] x[2 m + i - padding], f scaled to sum 1.

    Args:
      x: [b, h, w, c], h and w even (after padding).
      resample_filter: an even number of taps.
      padding: zeros on every side; None: as many as halve the size exactly.

    Returns:
      [b, h / 2, w / 2, c] for the default padding.
    """
    taps = _taps(resample_filter)
    half = len(taps) // 2
    pad = half - 1 if padding is None else padding
    if len(taps) == 2 and taps[0] == taps[1] and not pad:  # a box: the mean of four pixels
        b, h, w, c = x.shape
        four = x.reshape(b, h // 2, 2, w // 2, 2, c)
        return 0.25 * (
            four[:, :, 0, :, 0] + four[:, :, 0, :, 1] + four[:, :, 1, :, 0] + four[:, :, 1, :, 1]
        )
    for axis in (1, 2):
        if pad:
            x = jnp.pad(x, [(pad, pad) if i == axis else (0, 0) for i in range(4)])
        # Pairs of neighbours on an axis of their own: reduction instead of strided slices.
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        size = pairs.shape[axis] - half + 1
        shape = [2 if i == axis + 1 else 1 for i in range(5)]
        parts = [
            jax.lax.slice_in_dim(pairs, j, j + size, axis=axis)
            * jnp.asarray(taps[2 * j : 2 * j + 2].reshape(shape), x.dtype)
            for j in range(half)
        ]
        x = functools.reduce(operator.add, [part.sum(axis + 1) for part in parts])
    return x


def upsample(
    x: Float[Array, "b h w c"], resample_filter: Sequence[int]
) -> Float[Array, "b h2 w2 c"]:
    """Double both image axes: the transposed operation of `downsample`, times 4.

    Along each axis y[2 m + p] = 2 sum_k f[2 (m - k) + p + pad] x[k], pad = taps / 2 - 1.

    Args:
      x: [b, h, w, c].
      resample_filter: an even number of taps; (1, 1) repeats each pixel.

    Returns:
      [b, 2 h, 2 w, c].
    """
    taps = _taps(resample_filter)
    half = len(taps) // 2
    if len(taps) == 2 and taps[0] == taps[1]:  # a box: each pixel four times
        b, h, w, c = x.shape
        four = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
        return four.reshape(b, 2 * h, 2 * w, c)
    reach = half // 2  # how far away an input sample can touch an output pair
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(reach, reach) if i == axis else (0, 0) for i in range(4)])
        shape = [2 if i == axis + 1 else 1 for i in range(5)]
        parts = []
        for shift in range(-reach, reach + 1):
            index = np.arange(2) - 2 * shift + half - 1
            inside = (index >= 0) & (index < len(taps))
            weights = np.where(inside, 2.0 * taps[np.clip(index, 0, len(taps) - 1)], 0.0)
            source = jax.lax.slice_in_dim(padded, shift + reach, shift + reach + size, axis=axis)
            pair = jnp.asarray(weights.reshape(shape), x.dtype)
            parts.append(jnp.expand_dims(source, axis + 1) * pair)
        pairs = functools.reduce(operator.add, parts)
        x = pairs.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x
