"""The Song U-Net as EDM uses it: DDPM++ and NCSN++ (CIFAR-10, FFHQ, AFHQv2)."""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.families.edm.unet import UNet
from dmd2_jax.families.edm.unet_block import BlockInits, UNetBlock
from dmd2_jax.networks.layers import (
    ZEROS,
    Conv,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    num_groups,
    positional_embedding,
)
from dmd2_jax.typing import Array, DType, Float

_EPS = 1e-6  # of the group norms
_SKIP_SCALE = math.sqrt(0.5)

_INITS = BlockInits(
    kernel=Init(fan="both"),
    bias=ZEROS,
    last_kernel=Init(1e-5, fan="both"),
    query_kernel=Init(math.sqrt(0.2), fan="both"),
)


class SongUNet(UNet):
    """DDPM++ and NCSN++: single-head attention, sums divided by sqrt(2), raw output F.

    | setting            | DDPM++     | NCSN++       |
    |--------------------|------------|--------------|
    | embedding_type     | positional | fourier      |
    | encoder_type       | standard   | residual     |
    | resample_filter    | (1, 1)     | (1, 3, 3, 1) |
    | channel_mult_noise | 1          | 2            |

    With the residual encoder a convolved and halved copy of the input image is added to the first
    feature map of each coarser level. In the decoder only the last block of a level attends, and
    the first block of all.

    Attributes:
      resolution: image height and width, divisible by 2^(levels - 1).
      image_channels: channels of input and output.
      label_dim: number of classes; 0: unconditional.
      model_channels: channels at multiplier 1, and of the input convolution.
      channel_mult: one multiplier a level, finest first.
      channel_mult_emb: size of the embedding over `model_channels`.
      num_blocks: residual blocks a level (one more in the decoder).
      attention_resolutions: the resolutions whose blocks attend.
      dropout: probability; acts when a `dropout` random key is given.
      augment_dim: size of EDM's augmentation labels in the checkpoint; they are always zero here.
      embedding_type, encoder_type, resample_filter, channel_mult_noise: see the table.
      dtype: type of the computation; parameters and F are float32.
      remat: what the backward pass computes again, one of `REMAT`.

    Source: Song et al. 2021 (2011.13456); Karras et al. 2022 (2206.00364), appendix F.
    """

    resolution: int
    image_channels: int
    label_dim: int = 0
    model_channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attention_resolutions: Sequence[int] = (16,)
    dropout: float = 0.0
    augment_dim: int = 0
    embedding_type: str = "positional"
    encoder_type: str = "standard"
    resample_filter: Sequence[int] = (1, 1)
    channel_mult_noise: int = 1
    dtype: DType = jnp.float32

    def setup(self) -> None:
        """Name the layers as the original checkpoints do."""
        noise_channels = self.model_channels * self.channel_mult_noise
        linear = functools.partial(Linear, kernel_init=_INITS.kernel, bias_init=_INITS.bias)
        if self.embedding_type == "fourier":
            self.map_noise = FourierEmbedding(noise_channels)
        if self.label_dim:
            self.map_label = linear(noise_channels)
        if self.augment_dim:
            self.map_augment = linear(noise_channels, use_bias=False)
        self.map_layer0 = linear(self.model_channels * self.channel_mult_emb)
        self.map_layer1 = linear(self.model_channels * self.channel_mult_emb)
        self.enc = self._encoder()
        self.dec = self._decoder()

    def _conv(self, channels: int, **options: object) -> Conv:
        defaults = {"padding": 1, "kernel_init": _INITS.kernel, "bias_init": _INITS.bias}
        return Conv(channels, dtype=self.dtype, **(defaults | options))

    def _block(self, channels: int, *, attend: bool = False, resample: str = "") -> UNetBlock:
        return self._block_class()(
            channels,
            _INITS,
            resample=resample,
            num_heads=int(attend),
            skip_scale=_SKIP_SCALE,
            adaptive_scale=False,
            skip_conv=True,
            resample_filter=self.resample_filter,
            eps=_EPS,
            dropout=self.dropout,
            dtype=self.dtype,
        )

    def _encoder(self) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {}
        for level, mult in enumerate(self.channel_mult):
            size = self.resolution >> level
            if level == 0:
                layers[f"{size}x{size}_conv"] = self._conv(self.model_channels)
            else:
                finer = self.model_channels * self.channel_mult[level - 1]
                layers[f"{size}x{size}_down"] = self._block(finer, resample="down")
                if self.encoder_type == "residual":
                    # Fused: the convolution pads for the filter too, which then needs no padding.
                    layers[f"{size}x{size}_aux_residual"] = self._conv(
                        finer,
                        padding=1 + len(self.resample_filter) // 2 - 1,
                        down_filter=self.resample_filter,
                    )
            for index in range(self.num_blocks):
                layers[f"{size}x{size}_block{index}"] = self._block(
                    self.model_channels * mult, attend=size in self.attention_resolutions
                )
        return layers

    def _decoder(self) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {}
        last = len(self.channel_mult) - 1
        for level in range(last, -1, -1):
            size = self.resolution >> level
            channels = self.model_channels * self.channel_mult[level]
            if level == last:
                layers[f"{size}x{size}_in0"] = self._block(channels, attend=True)
                layers[f"{size}x{size}_in1"] = self._block(channels)
            else:
                coarser = self.model_channels * self.channel_mult[level + 1]
                layers[f"{size}x{size}_up"] = self._block(coarser, resample="up")
            for index in range(self.num_blocks + 1):
                attend = index == self.num_blocks and size in self.attention_resolutions
                layers[f"{size}x{size}_block{index}"] = self._block(channels, attend=attend)
        size, channels = self.resolution, self.model_channels * self.channel_mult[0]
        layers[f"{size}x{size}_aux_norm"] = GroupNorm(num_groups(channels), _EPS)
        layers[f"{size}x{size}_aux_conv"] = self._conv(
            self.image_channels, kernel_init=_INITS.last_kernel
        )
        return layers

    def embed_noise(self, noise_labels: Float[Array, " b"]) -> Float[Array, "b d"]:
        """Return the noise level's embedding, cosines first, before any learned layer."""
        if self.embedding_type == "fourier":
            return self.map_noise(noise_labels)
        features = self.model_channels * self.channel_mult_noise
        return positional_embedding(noise_labels, features, endpoint=True)

    def _embed(
        self, noise_labels: Float[Array, " b"], class_labels: Float[Array, "b n"] | None
    ) -> Float[Array, "b d"]:
        cosines, sines = jnp.split(self.embed_noise(noise_labels), 2, axis=-1)
        embedding = jnp.concatenate([sines, cosines], axis=-1)  # the checkpoints' order
        batch = embedding.shape[0]
        if self.label_dim:
            # This map has a bias, so even a missing label adds something.
            if class_labels is None:
                class_labels = jnp.zeros((batch, self.label_dim))
            embedding += self.map_label(class_labels * math.sqrt(self.label_dim))
        if self.augment_dim:
            embedding += self.map_augment(jnp.zeros((batch, self.augment_dim)))
        return nn.silu(self.map_layer1(nn.silu(self.map_layer0(embedding))))

    def _encode(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b d"]) -> list[Array]:
        skips: list[Array] = []
        auxiliary = x
        for name, layer in self.enc.items():
            if "_aux_residual" in name:
                x = auxiliary = skips[-1] = (x + layer(auxiliary)) * _SKIP_SCALE
                continue
            x = layer(x) if isinstance(layer, Conv) else layer(x, embedding)
            skips.append(x)
        return skips

    def _decode(self, skips: list[Array], embedding: Float[Array, "b d"]) -> Array:
        skips = list(skips)
        x = skips[-1]
        for name, layer in self.dec.items():
            if "_aux_norm" in name:
                x = nn.silu(layer(x))
            elif "_aux_conv" in name:
                x = layer(x)
            else:
                if "_block" in name:
                    x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = layer(x, embedding)
        return x
