"""An autoencoder of videos, for single frames: images in [-1, 1] <-> latents of an eighth the size.

A convolution over time is causal: zeros stand before the first frame, so that of a single frame its
last tap alone counts, and every convolution is one of images. Weights are whole, as they are
published; what only further frames would reach is kept, and not computed with. Modules are called
as the published weights of diffusers' AutoencoderKLQwenImage call them, with `_0` for `.0`.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.attention import attention
from dmd2_jax.networks.conv import conv2d
from dmd2_jax.networks.layers import FAN_IN, Conv, upsample
from dmd2_jax.networks.published_config import read_config
from dmd2_jax.networks.vae import Gaussian, check_images, gaussian
from dmd2_jax.networks.weight import weight
from dmd2_jax.typing import Array, DType, Float

__all__ = ["AutoencoderVideo", "example_video_vae_inputs", "video_vae_from_config"]

_LEAST_NORM = 1e-12
_NEAREST = (1, 1)  # the filter that repeats pixels
_CLASS_NAME = "AutoencoderKLQwenImage"

# fmt: off
_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on
_DEFAULTS: dict[str, Any] = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "temperal_downsample": (False, True, True),
    "input_channels": 3,
    "latents_mean": _MEAN,
    "latents_std": _STD,
}
_SUPPORTED = {"attn_scales": ((),), "dropout": (0.0,)}


class _Norm(nn.Module):
    """x / |x| sqrt(c) gamma over the channels, float32; gamma has axes of space, or of time too."""

    axes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        # In torch's layouts channels are first; of four axes they are turned as a kernel's are.
        shape = (1, 1, 1, channels) if self.axes == 4 else (channels, 1, 1)
        gamma = weight(self, "gamma", nn.initializers.ones, shape, jnp.float32).reshape(-1)
        wide = x.astype(jnp.float32)
        norm = jnp.sqrt(jnp.square(wide).sum(-1, keepdims=True))
        return (wide / jnp.maximum(norm, _LEAST_NORM) * channels**0.5 * gamma).astype(x.dtype)


class _CausalConv(nn.Module):
    """A convolution over time, rows and columns, of a first frame: that of the last tap."""

    features: int
    size: int
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        shape = (self.size,) * 3 + (x.shape[-1], self.features)
        kernel = weight(self, "kernel", FAN_IN, shape, shape)[-1].astype(self.dtype)
        bias = weight(self, "bias", FAN_IN, shape[-1:], shape).astype(self.dtype)
        side = self.size // 2
        return conv2d(x.astype(self.dtype), kernel, padding=((side, side), (side, side))) + bias


class _BetweenFrames(nn.Module):
    """The weights of a convolution over time alone, which a single frame does not go through."""

    channels: int
    features: int

    @nn.compact
    def __call__(self) -> None:
        shape = (3, 1, 1, self.channels, self.features)
        weight(self, "kernel", FAN_IN, shape, shape)
        weight(self, "bias", FAN_IN, shape[-1:], shape)


class _Residual(nn.Module):
    features: int
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        def conv(name: str, size: int = 3) -> _CausalConv:
            return _CausalConv(self.features, size, self.dtype, name=name)

        h = conv("conv1")(nn.silu(_Norm(4, name="norm1")(x)))
        h = conv("conv2")(nn.silu(_Norm(4, name="norm2")(h)))
        return h + (x if x.shape[-1] == self.features else conv("conv_shortcut", 1)(x))


class _Attention(nn.Module):
    """Attention of the pixels to each other, with one head."""

    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        qkv = Conv(3 * c, 1, dtype=self.dtype, name="to_qkv")(_Norm(3, name="norm")(x))
        parts = jnp.split(qkv.reshape(b, h * w, 1, 3 * c), 3, axis=-1)
        read = attention(*parts).reshape(x.shape)
        return x + Conv(c, 1, dtype=self.dtype, name="proj")(read)


class _Middle(nn.Module):
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = _Residual(x.shape[-1], self.dtype, name="resnets_0")(x)
        x = _Attention(self.dtype, name="attentions_0")(x)
        return _Residual(x.shape[-1], self.dtype, name="resnets_1")(x)


class _Resample(nn.Module):
    """Half the size, or twice the size and half the channels."""

    up: bool
    in_time: bool
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        channels = x.shape[-1]
        if self.in_time:
            _BetweenFrames(channels, channels * (1 + self.up), name="time_conv")()
        if self.up:
            layer = Conv(channels // 2, padding=1, dtype=self.dtype, name="resample_1")
            return layer(upsample(x, _NEAREST))
        padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return Conv(channels, stride=2, dtype=self.dtype, name="resample_1")(padded)


class _UpLevel(nn.Module):
    features: int
    layers: int
    resample: bool
    in_time: bool
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        for number in range(self.layers):
            x = _Residual(self.features, self.dtype, name=f"resnets_{number}")(x)
        if self.resample:
            x = _Resample(True, self.in_time, self.dtype, name="upsamplers_0")(x)
        return x


class _Encoder(nn.Module):
    model: "AutoencoderVideo"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        m, numbers = self.model, itertools.count()  # the layers of all levels are one list
        x = _CausalConv(m.stem, 3, m.dtype, name="conv_in")(x)
        for level, width in enumerate(m.block_channels):
            for _ in range(m.layers):
                x = _Residual(width, m.dtype, name=f"down_blocks_{next(numbers)}")(x)
            if level < len(m.in_time):
                name = f"down_blocks_{next(numbers)}"
                x = _Resample(False, m.in_time[level], m.dtype, name=name)(x)
        x = nn.silu(_Norm(4, name="norm_out")(_Middle(m.dtype, name="mid_block")(x)))
        return _CausalConv(2 * m.latent_channels, 3, m.dtype, name="conv_out")(x)


class _Decoder(nn.Module):
    model: "AutoencoderVideo"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        m = self.model
        x = _CausalConv(m.block_channels[-1], 3, m.dtype, name="conv_in")(x)
        x = _Middle(m.dtype, name="mid_block")(x)
        for level, width in enumerate(reversed(m.block_channels)):
            more = level < len(m.in_time)
            in_time = more and m.in_time[::-1][level]
            name = f"up_blocks_{level}"
            x = _UpLevel(width, m.layers + 1, more, in_time, m.dtype, name=name)(x)
        x = nn.silu(_Norm(4, name="norm_out")(x))
        return _CausalConv(m.channels, 3, m.dtype, name="conv_out")(x)


class AutoencoderVideo(nn.Module):
    """The autoencoder of Qwen-Image, of single frames.

    A diffusion model's latents are `scaled(z)`, (z - mean) / std, z a sample of `encode`; `decode`
    takes z, `unscaled(latents)`.

    Attributes:
      channels: of the images.
      latent_channels: of z.
      stem: channels after the encoder's first layer.
      block_channels: one width a level, finest first; each level but the last halves the image.
      layers: residual blocks a level of the encoder (one more in the decoder).
      in_time: of each level but the last, whether it halves a video's frames too.
      mean, std: of z, a number a channel.
      dtype: type of the computation; norms, parameters and outputs are float32.

    Source: the config.json and weights of Qwen/Qwen-Image, as diffusers reads them; Wan Team 2025
      (2503.20314), section 4.1.
    """

    channels: int
    latent_channels: int
    stem: int
    block_channels: tuple[int, ...]
    layers: int
    in_time: tuple[bool, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: DType = jnp.float32

    def setup(self) -> None:
        """Name the layers as the published weights do."""
        settings = self.clone(parent=None, name=None)
        self.encoder, self.decoder = _Encoder(settings), _Decoder(settings)
        self.quant_conv = _CausalConv(2 * self.latent_channels, 1, self.dtype)
        self.post_quant_conv = _CausalConv(self.latent_channels, 1, self.dtype)

    @property
    def downscale(self) -> int:
        """How many times smaller than the image a latent is, in height and width."""
        return 2 ** len(self.in_time)

    def scaled(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the latents of a diffusion model that z is."""
        return (z - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def unscaled(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the z of a diffusion model's latents."""
        return latents * jnp.asarray(self.std) + jnp.asarray(self.mean)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the images decoded from the means of their latents, float32."""
        return self.decode(self.encode(images).mean)

    def encode(self, images: Float[Array, "b h w c"]) -> Gaussian:
        """Return the distribution of z, float32.

        Args:
          images: [b, h, w, c] in [-1, 1], h and w divisible by 2^(levels - 1).

        Raises:
          ValueError: if the shape does not fit.
        """
        check_images(images, self.channels, self.downscale)
        return gaussian(self.quant_conv(self.encoder(images)))

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Return the images of `latents` z, in [-1, 1] (clipped, as published), float32.

        Raises:
          ValueError: if the shape does not fit.
        """
        if latents.ndim != 4 or latents.shape[3] != self.latent_channels:
            raise Refused(
                f"latents have shape {latents.shape}, expected [b, h, w, {self.latent_channels}]; "
                "check that they are this autoencoder's, in NHWC."
            )
        images = self.decoder(self.post_quant_conv(latents))
        return jnp.clip(images.astype(jnp.float32), -1.0, 1.0)


def video_vae_from_config(
    config: Mapping[str, Any], *, dtype: DType = jnp.float32
) -> AutoencoderVideo:
    """Build the autoencoder that a config.json of an AutoencoderKLQwenImage describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.

    Raises:
      ValueError: if the config asks for what this network does not do, or contradicts itself.
    """
    c = read_config(config, class_name=_CLASS_NAME, defaults=_DEFAULTS, supported=_SUPPORTED)
    levels, in_time, z = len(c["dim_mult"]), c["temperal_downsample"], c["z_dim"]
    if len(in_time) != levels - 1:
        raise Refused(
            f"temperal_downsample={list(in_time)} with dim_mult={list(c['dim_mult'])}, expected "
            "one entry less, for each level but the last; correct config.json."
        )
    mean, std = c["latents_mean"], c["latents_std"]
    if len(mean) != z or len(std) != z or not all(one > 0 for one in std):
        raise Refused(
            f"latents_mean and latents_std of {len(mean)} and {len(std)} numbers with z_dim={z}, "
            "expected one a channel, of latents_std above 0; correct config.json."
        )
    return AutoencoderVideo(
        channels=c["input_channels"],
        latent_channels=z,
        stem=c["base_dim"],
        block_channels=tuple(c["base_dim"] * factor for factor in c["dim_mult"]),
        layers=c["num_res_blocks"],
        in_time=in_time,
        mean=mean,
        std=std,
        dtype=dtype,
    )


def example_video_vae_inputs(vae: AutoencoderVideo) -> tuple[jax.ShapeDtypeStruct]:
    """Return the smallest images that reach every parameter."""
    size = vae.downscale
    return (jax.ShapeDtypeStruct((1, size, size, vae.channels), jnp.float32),)
