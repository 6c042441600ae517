"""The autoencoder of FLUX.2: Stable Diffusion's, with latents of a sixteenth of the image's size.

What its encoder makes is taken in patches of 2 x 2, in the order channel, row, column, and brought
to mean 0 and variance 1 by statistics that are part of its weights.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.networks.packing import pack, unpack
from dmd2_jax.networks.published_config import read_config
from dmd2_jax.networks.vae import DEFAULTS, AutoencoderKL, Gaussian, vae_settings
from dmd2_jax.networks.weight import weight
from dmd2_jax.typing import Array, DType, Float

__all__ = ["AutoencoderKLFlux2", "flux2_vae_from_config"]

_PATCH = 2
_DEFAULTS = {
    **{k: v for k, v in DEFAULTS.items() if k not in ("scaling_factor", "shift_factor")},
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "decoder_block_out_channels": None,
    "layers_per_block": 2,
    "latent_channels": 32,
    "batch_norm_eps": 1e-4,
}
_SUPPORTED = {"act_fn": ("silu", "swish"), "patch_size": ((_PATCH, _PATCH),)}
_IGNORED = ("sample_size", "batch_norm_momentum")


class _Statistics(nn.Module):
    """Mean and variance of each channel, as a BatchNorm2d without scale and shift has them."""

    channels: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """Return (mean, variance)."""
        shape = (self.channels,)
        mean = weight(self, "running_mean", nn.initializers.zeros, shape, jnp.float32)
        return mean, weight(self, "running_var", nn.initializers.ones, shape, jnp.float32)


class AutoencoderKLFlux2(AutoencoderKL):
    """The autoencoder of FLUX.2; z is what its encoder makes, in patches.

    Attributes:
      norm_eps: added to the variance.

    Source: the config.json and weights of black-forest-labs/FLUX.2-klein-base-4B, as diffusers
      reads them.
    """

    norm_eps: float = 1e-4

    def setup(self) -> None:
        """Name the layers as the published weights do."""
        super().setup()
        self.bn = _Statistics(self.latent_channels)

    @property
    def coded_channels(self) -> int:
        """Channels between encoder and decoder."""
        return self.latent_channels // _PATCH**2

    @property
    def downscale(self) -> int:
        """How many times smaller than the image a latent is, in height and width."""
        return _PATCH * 2 ** (len(self.block_channels) - 1)

    def scaled(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the latents of a diffusion model that z is."""
        mean, variance = self.bn()
        return (z - mean) / jnp.sqrt(variance + self.norm_eps)

    def unscaled(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the z of a diffusion model's latents.

        Raises:
          ValueError: if the shape does not fit.
        """
        self.check_latents(latents)
        mean, variance = self.bn()
        return latents * jnp.sqrt(variance + self.norm_eps) + mean

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the images decoded from the means of their latents, float32."""
        return self.decode(self.unscaled(self.scaled(self.encode(images).mean)))

    def encode(self, images: Float[Array, "b h w c"]) -> Gaussian:
        """Return the distribution of z, float32.

        Args:
          images: [b, h, w, c] in [-1, 1], h and w divisible by 16 of the published size.

        Raises:
          ValueError: if the shape does not fit.
        """
        mean, logvar = super().encode(images)
        return Gaussian(pack(mean), pack(logvar))

    def decoded(self, z: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Run the decoder on what the encoder makes."""
        return super().decoded(unpack(z))


def flux2_vae_from_config(
    config: Mapping[str, Any], *, dtype: DType = jnp.float32
) -> AutoencoderKLFlux2:
    """Build the autoencoder that a config.json of an AutoencoderKLFlux2 describes.

    Args:
      config: the file's contents; absent settings have diffusers' defaults.
      dtype: type of the computation.

    Raises:
      ValueError: if the config asks for what this network does not do.
    """
    c = read_config(
        config,
        class_name="AutoencoderKLFlux2",
        defaults=_DEFAULTS,
        supported=_SUPPORTED,
        ignored=_IGNORED,
    )
    return AutoencoderKLFlux2(
        latent_channels=c["latent_channels"] * _PATCH**2,
        norm_eps=c["batch_norm_eps"],
        dtype=dtype,
        **vae_settings(c),
    )
