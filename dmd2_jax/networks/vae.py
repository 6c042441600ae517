"""Stable Diffusion's autoencoder: images in [-1, 1] <-> latents of an eighth of the size.

Modules are called as the published weights of diffusers' AutoencoderKL call them, with `_0` for
`.0`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.layers import Conv, GroupNorm
from dmd2_jax.networks.published_config import read_config
from dmd2_jax.networks.sd_resnet import Downsample, ResnetBlock, Upsample
from dmd2_jax.networks.sd_transformer import MultiHeadAttention
from dmd2_jax.typing import Array, DType, Float

__all__ = [
    "DEFAULTS",
    "AutoencoderKL",
    "Gaussian",
    "check_images",
    "example_vae_inputs",
    "gaussian",
    "vae_from_config",
    "vae_settings",
]

_EPS = 1e-6
_LOGVAR_RANGE = (-30.0, 20.0)

DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
"""Of an AutoencoderKL in diffusers."""

_SUPPORTED = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
}


class Gaussian(NamedTuple):
    """Independent normal distributions of the entries of a latent.

    Attributes:
      mean: [b, h, w, c], float32.
      logvar: [b, h, w, c], logarithm of the variance, within [-30, 20], float32.
    """

    mean: Float[Array, "b h w c"]
    logvar: Float[Array, "b h w c"]

    @property
    def std(self) -> Float[Array, "b h w c"]:
        """Standard deviation."""
        return jnp.exp(0.5 * self.logvar)

    def sample(self, eps: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return mean + std eps, with standard normal `eps`."""
        return self.mean + self.std * eps


class _MidBlock(nn.Module):
    """Attention of the pixels to each other, with one head, between two residual blocks."""

    groups: int
    attend: bool
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        x = ResnetBlock(channels, self.groups, _EPS, self.dtype, name="resnets_0")(x)
        if self.attend:
            attend = MultiHeadAttention(1, True, self.groups, self.dtype, name="attentions_0")
            x += attend(x.reshape(x.shape[0], -1, channels)).reshape(x.shape)
        return ResnetBlock(channels, self.groups, _EPS, self.dtype, name="resnets_1")(x)


class _Level(nn.Module):
    """Residual blocks, then half (encoder) or twice (decoder) the resolution, or neither."""

    channels: int
    layers: int
    groups: int
    resample: str
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        for index in range(self.layers):
            name = f"resnets_{index}"
            x = ResnetBlock(self.channels, self.groups, _EPS, self.dtype, name=name)(x)
        if self.resample == "down":
            return Downsample(symmetric=False, dtype=self.dtype, name="downsamplers_0")(x)
        if self.resample == "up":
            return Upsample(dtype=self.dtype, name="upsamplers_0")(x)
        return x


class _Coder(nn.Module):
    """The encoder, or the decoder, which is its mirror image with one more block a level."""

    out_channels: int
    block_channels: tuple[int, ...]
    layers: int
    groups: int
    attend: bool
    decode: bool
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        widths = self.block_channels[::-1] if self.decode else self.block_channels
        middle = _MidBlock(self.groups, self.attend, self.dtype, name="mid_block")
        x = Conv(widths[0], padding=1, dtype=self.dtype, name="conv_in")(x)
        if self.decode:
            x = middle(x)
        for index, width in enumerate(widths):
            resample = "" if index == len(widths) - 1 else "up" if self.decode else "down"
            name = f"up_blocks_{index}" if self.decode else f"down_blocks_{index}"
            x = _Level(width, self.layers, self.groups, resample, self.dtype, name=name)(x)
        if not self.decode:
            x = middle(x)
        x = nn.silu(GroupNorm(self.groups, _EPS, name="conv_norm_out")(x))
        return Conv(self.out_channels, padding=1, dtype=self.dtype, name="conv_out")(x)


def check_images(images: Float[Array, "..."], channels: int, unit: int) -> None:
    """Refuse what an encoder cannot take.

    Args:
      images: to be [b, h, w, c].
      channels: c.
      unit: what h and w have to be divisible by.

    Raises:
      Refused: if the shape does not fit.
    """
    if images.ndim != 4 or images.shape[3] != channels or any(n % unit for n in images.shape[1:3]):
        raise Refused(
            f"images have shape {images.shape}, expected [b, h, w, {channels}] with h and w "
            f"divisible by {unit}; resize or crop them."
        )


def gaussian(moments: Float[Array, "b h w d"]) -> Gaussian:
    """Return the distribution of which an encoder gives mean and log variance, side by side."""
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return Gaussian(mean, jnp.clip(logvar, *_LOGVAR_RANGE))


class AutoencoderKL(nn.Module):
    """The autoencoder of latent diffusion.

    A diffusion model's latents are `scaled(z)`, (z - shift_factor) scaling_factor, z a sample
    of `encode`; `decode` takes z, `unscaled(latents)`.

    Attributes:
      in_channels, out_channels: of the images.
      latent_channels: of a latent.
      block_channels: one width a level, finest first; each level but the last halves the image.
      decoder_channels: those of the decoder, where they are others; (): the same.
      layers: residual blocks a level of the encoder (one more in the decoder).
      groups: of the group norms.
      attend: whether the pixels of the coarsest level attend to each other.
      quantise, post_quantise: whether there is a 1x1 convolution after the encoder, before the
        decoder.
      scaling_factor, shift_factor: see above.
      force_upcast: whether the publisher says that float16 overflows; bfloat16 does not.
      dtype: type of the computation; parameters and outputs are float32.

    Source: Rombach et al. 2022 (2112.10752), section 3.1 and appendix G.
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    block_channels: tuple[int, ...]
    layers: int
    groups: int = 32
    attend: bool = True
    quantise: bool = True
    post_quantise: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    force_upcast: bool = True
    decoder_channels: tuple[int, ...] = ()
    dtype: DType = jnp.float32

    def setup(self) -> None:
        """Name the layers as the published weights do."""

        def coder(channels: int, *, decode: bool) -> _Coder:
            return _Coder(
                channels,
                (decode and self.decoder_channels) or self.block_channels,
                self.layers + int(decode),
                self.groups,
                self.attend,
                decode,
                self.dtype,
            )

        self.encoder = coder(2 * self.coded_channels, decode=False)
        self.decoder = coder(self.out_channels, decode=True)
        if self.quantise:
            self.quant_conv = Conv(2 * self.coded_channels, 1, dtype=self.dtype)
        if self.post_quantise:
            self.post_quant_conv = Conv(self.coded_channels, 1, dtype=self.dtype)

    @property
    def coded_channels(self) -> int:
        """Channels between encoder and decoder."""
        return self.latent_channels

    @property
    def downscale(self) -> int:
        """How many times smaller than the image a latent is, in height and width."""
        return 2 ** (len(self.block_channels) - 1)

    def scaled(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the latents of a diffusion model that z is."""
        return (z - self.shift_factor) * self.scaling_factor

    def unscaled(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the z of a diffusion model's latents."""
        return latents / self.scaling_factor + self.shift_factor

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
        check_images(images, self.in_channels, self.downscale)
        moments = self.encoder(images)
        if self.quantise:
            moments = self.quant_conv(moments)
        return gaussian(moments)

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Return the images of `latents` z, about [-1, 1] (not clipped), float32.

        Raises:
          ValueError: if the shape does not fit.
        """
        self.check_latents(latents)
        return self.decoded(latents)

    def check_latents(self, latents: Float[Array, "..."]) -> None:
        """Refuse latents that are not of this autoencoder's shape."""
        if latents.ndim != 4 or latents.shape[3] != self.latent_channels:
            raise Refused(
                f"latents have shape {latents.shape}, expected [b, h, w, {self.latent_channels}]; "
                "check that they are this autoencoder's, in NHWC."
            )

    def decoded(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Run the decoder on what the encoder makes."""
        if self.post_quantise:
            z = self.post_quant_conv(z)
        return self.decoder(z).astype(jnp.float32)


def vae_from_config(config: Mapping[str, Any], *, dtype: DType = jnp.float32) -> AutoencoderKL:
    """Build the autoencoder that a config.json of an AutoencoderKL describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.

    Raises:
      ValueError: if the config asks for what this network does not do.
    """
    c = read_config(
        config,
        class_name="AutoencoderKL",
        defaults=DEFAULTS,
        supported=_SUPPORTED,
        ignored=("sample_size",),
    )
    return AutoencoderKL(
        latent_channels=c["latent_channels"],
        scaling_factor=c["scaling_factor"],
        shift_factor=c["shift_factor"] or 0.0,
        dtype=dtype,
        **vae_settings(c),
    )


def vae_settings(c: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config.json says of encoder and decoder, as fields of an `AutoencoderKL`.

    Args:
      c: its settings, from `read_config`.

    Raises:
      Refused: if they contradict each other.
    """
    widths, own = c["block_out_channels"], c.get("decoder_block_out_channels") or ()
    down = ("DownEncoderBlock2D",) * len(widths)
    up = ("UpDecoderBlock2D",) * len(widths)
    if c["down_block_types"] != down or c["up_block_types"] != up:
        raise Refused(
            f"down_block_types={c['down_block_types']}, up_block_types={c['up_block_types']}, "
            f"expected {down} and {up} for block_out_channels={widths}; use the autoencoder of "
            "the network's own release."
        )
    if any(width % c["norm_num_groups"] for width in (*widths, *own)) or len(own or up) != len(up):
        decoder = f" and decoder_block_out_channels={own}" if own else ""
        raise Refused(
            f"block_out_channels={widths}{decoder}, expected multiples of norm_num_groups="
            f"{c['norm_num_groups']}, as many for both; correct config.json."
        )
    return {
        "in_channels": c["in_channels"],
        "out_channels": c["out_channels"],
        "block_channels": widths,
        "decoder_channels": tuple(own),
        "layers": c["layers_per_block"],
        "groups": c["norm_num_groups"],
        "attend": c["mid_block_add_attention"],
        "quantise": c["use_quant_conv"],
        "post_quantise": c["use_post_quant_conv"],
        "force_upcast": c["force_upcast"],
    }


def example_vae_inputs(vae: AutoencoderKL) -> tuple[jax.ShapeDtypeStruct]:
    """Return the smallest images that reach every parameter."""
    size = vae.downscale
    return (jax.ShapeDtypeStruct((1, size, size, vae.in_channels), jnp.float32),)
