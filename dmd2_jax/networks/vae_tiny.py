"""TAESD, the tiny autoencoder: Stable Diffusion's latents without its autoencoder's weight.

Modules are called as the published weights of diffusers' AutoencoderTiny call them, with `_0` for
`.0`; numbers are skipped where the published list holds a layer without weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.layers import Conv, upsample
from dmd2_jax.networks.published_config import read_config
from dmd2_jax.networks.vae import check_images
from dmd2_jax.typing import Array, DType, Float

__all__ = ["AutoencoderTiny", "example_tiny_vae_inputs", "tiny_vae_from_config"]

_NEAREST = (1, 1)
_CLAMP = 3.0  # latents are squashed to (-3, 3)

_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": (64, 64, 64, 64),
    "decoder_block_out_channels": (64, 64, 64, 64),
    "latent_channels": 4,
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 1),
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
_SUPPORTED = {
    "act_fn": ("relu",),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}
# The magnitude and shift are for storing latents as pictures; they do not enter encode and decode.
_IGNORED = ("block_out_channels", "force_upcast", "latent_magnitude", "latent_shift")


class _Block(nn.Module):
    """Three convolutions beside a skip."""

    channels: int
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        h = x
        for index in (0, 2, 4):
            conv = Conv(self.channels, padding=1, dtype=self.dtype, name=f"conv_{index}")
            h = conv(nn.relu(h) if index else h)
        if x.shape[-1] != self.channels:
            x = Conv(self.channels, 1, use_bias=False, dtype=self.dtype, name="skip")(x)
        return nn.relu(h + x)


class _Layers(nn.Module):
    """The published list of the encoder's or the decoder's layers, each named by its place."""

    out_channels: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    decode: bool
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        place = 0  # layers without weights (activation, doubling) take places too

        def named(layer: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
            nonlocal place
            place += 1
            return layer(*args, dtype=self.dtype, name=f"layers_{place - 1}", **kwargs)

        if self.decode:
            x = nn.relu(named(Conv, self.widths[0], padding=1)(x))
            place += 1
        for level, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            last = level == len(self.widths) - 1
            if not self.decode:
                stride = {"stride": 2, "use_bias": False} if level else {}
                x = named(Conv, width, padding=1, **stride)(x)
            for _ in range(blocks):
                x = named(_Block, width)(x)
            if self.decode:
                if not last:
                    x = upsample(x, _NEAREST)
                    place += 1
                features = self.out_channels if last else width
                x = named(Conv, features, padding=1, use_bias=last)(x)
        return x if self.decode else named(Conv, self.out_channels, padding=1)(x)


class AutoencoderTiny(nn.Module):
    """TAESD: a distilled autoencoder whose latents are already scaled for the diffusion model.

    A diffusion model's latents are `scaled(encode(images))`; `decode` takes the encoder's.

    Attributes:
      in_channels, out_channels: of the images.
      latent_channels: of the latents.
      encoder_widths, decoder_widths: channels of each level, in the order of execution; each level
        but the encoder's first halves, each but the decoder's last doubles the resolution.
      encoder_blocks, decoder_blocks: residual blocks of each level.
      scaling_factor, shift_factor: as in `AutoencoderKL`; 1 and 0 in all published ones.
      dtype: type of the computation; parameters and outputs are float32.

    Source: O. Boer Bohan, Tiny AutoEncoder for Stable Diffusion (github.com/madebyollin/taesd).
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    encoder_widths: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    dtype: DType = jnp.float32

    def setup(self) -> None:
        """Name the layers as the published weights do."""
        self.encoder = _Layers(
            self.latent_channels, self.encoder_widths, self.encoder_blocks, False, self.dtype
        )
        self.decoder = _Layers(
            self.out_channels, self.decoder_widths, self.decoder_blocks, True, self.dtype
        )

    @property
    def downscale(self) -> int:
        """How many times smaller than the image a latent is, in height and width."""
        return 2 ** (len(self.encoder_widths) - 1)

    def scaled(self, z: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Return the latents of a diffusion model that z is."""
        return (z - self.shift_factor) * self.scaling_factor

    def unscaled(self, latents: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Return the z of a diffusion model's latents."""
        return latents / self.scaling_factor + self.shift_factor

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the images decoded from their latents, float32."""
        return self.decode(self.encode(images))

    def encode(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Return the latents of images in [-1, 1], float32.

        Raises:
          ValueError: if the shape does not fit.
        """
        check_images(images, self.in_channels, self.downscale)
        return self.encoder((images + 1) / 2).astype(jnp.float32)

    def decode(self, latents: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 c"]:
        """Return the images of `latents`, about [-1, 1] (not clipped), float32.

        Raises:
          ValueError: if the shape does not fit.
        """
        if latents.ndim != 4 or latents.shape[3] != self.latent_channels:
            raise Refused(
                f"latents have shape {latents.shape}, expected [b, h, w, {self.latent_channels}]; "
                "check that they are this autoencoder's, in NHWC."
            )
        images = self.decoder(jnp.tanh(latents / _CLAMP) * _CLAMP)
        return images.astype(jnp.float32) * 2 - 1


def tiny_vae_from_config(
    config: Mapping[str, Any], *, dtype: DType = jnp.float32
) -> AutoencoderTiny:
    """Build the autoencoder that a config.json of an AutoencoderTiny describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.

    Raises:
      ValueError: if the config asks for what this network does not do.
    """
    c = read_config(
        config,
        class_name="AutoencoderTiny",
        defaults=_DEFAULTS,
        supported=_SUPPORTED,
        ignored=_IGNORED,
    )
    for part in ("encoder", "decoder"):
        widths, blocks = c[f"{part}_block_out_channels"], c[f"num_{part}_blocks"]
        if len(widths) != len(blocks):
            raise Refused(
                f"{part}_block_out_channels={widths} and num_{part}_blocks={blocks}, expected one "
                "entry a level in both; correct config.json."
            )
    return AutoencoderTiny(
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        latent_channels=c["latent_channels"],
        encoder_widths=c["encoder_block_out_channels"],
        decoder_widths=c["decoder_block_out_channels"],
        encoder_blocks=c["num_encoder_blocks"],
        decoder_blocks=c["num_decoder_blocks"],
        scaling_factor=c["scaling_factor"],
        shift_factor=c["shift_factor"],
        dtype=dtype,
    )


def example_tiny_vae_inputs(vae: AutoencoderTiny) -> tuple[jax.ShapeDtypeStruct]:
    """Return the smallest images that reach every parameter."""
    size = 2 ** max(len(vae.encoder_widths) - 1, len(vae.decoder_widths) - 1)
    return (jax.ShapeDtypeStruct((1, size, size, vae.in_channels), jnp.float32),)
