"""The ADM U-Net of Dhariwal and Nichol as EDM uses it (ImageNet-64)."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.families.edm.settings import CHANNELS_PER_HEAD
from dmd2_jax.families.edm.unet import UNet
from dmd2_jax.families.edm.unet_block import BlockInits, UNetBlock
from dmd2_jax.networks.layers import (
    FAN_IN,
    ZEROS,
    Conv,
    GroupNorm,
    Init,
    Linear,
    num_groups,
    positional_embedding,
)
from dmd2_jax.typing import Array, DType, Float

_INITS = BlockInits(
    kernel=FAN_IN,
    bias=FAN_IN,
    last_kernel=ZEROS,
    query_kernel=FAN_IN,
)


class AdmUNet(UNet):
    """ADM: adaptive group norm, multi-head attention, raw input and output F.

    A block has channels // 64 attention heads, so none below 64 channels, wherever
    `attention_resolutions` asks for it; the first decoder block attends always.

    Attributes:
      resolution: image height and width, divisible by 2^(levels - 1).
      image_channels: channels of input and output.
      label_dim: number of classes; 0: unconditional.
      model_channels: channels of the finest level at multiplier 1.
      channel_mult: one multiplier a level, finest first.
      channel_mult_emb: size of the embedding over `model_channels`.
      num_blocks: residual blocks a level (one more in the decoder).
      attention_resolutions: the resolutions whose blocks attend.
      dropout: probability; acts when a `dropout` random key is given.
      augment_dim: size of EDM's augmentation labels in the checkpoint; they are always zero here.
      dtype: type of the computation; parameters and F are float32.
      remat: what the backward pass computes again, one of `REMAT`.

    Source: Dhariwal and Nichol 2021 (2105.05233); Karras et al. 2022 (2206.00364), appendix F.
    """

    resolution: int
    image_channels: int
    label_dim: int = 0
    model_channels: int = 192
    channel_mult: Sequence[int] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attention_resolutions: Sequence[int] = (32, 16, 8)
    dropout: float = 0.0
    augment_dim: int = 0
    dtype: DType = jnp.float32

    def setup(self) -> None:
        """Name the layers as the original checkpoints do."""
        linear = functools.partial(Linear, self.model_channels * self.channel_mult_emb)
        self.map_layer0 = linear()
        self.map_layer1 = linear()
        if self.label_dim:
            self.map_label = linear(
                use_bias=False, kernel_init=Init(fan="none", distribution="normal")
            )
        if self.augment_dim:
            self.map_augment = Linear(self.model_channels, use_bias=False, kernel_init=ZEROS)
        self.enc = self._encoder()
        self.dec = self._decoder()
        self.out_norm = GroupNorm(num_groups(self.model_channels * self.channel_mult[0]))
        self.out_conv = Conv(
            self.image_channels,
            padding=1,
            kernel_init=ZEROS,
            bias_init=ZEROS,
            dtype=self.dtype,
        )

    def _block(self, channels: int, *, attend: bool = False, resample: str = "") -> UNetBlock:
        return self._block_class()(
            channels,
            _INITS,
            resample=resample,
            num_heads=channels // CHANNELS_PER_HEAD if attend else 0,
            dropout=self.dropout,
            dtype=self.dtype,
        )

    def _encoder(self) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {}
        for level, mult in enumerate(self.channel_mult):
            size = self.resolution >> level
            channels = self.model_channels * mult
            if level == 0:
                layers[f"{size}x{size}_conv"] = Conv(channels, padding=1, dtype=self.dtype)
            else:
                finer = self.model_channels * self.channel_mult[level - 1]
                layers[f"{size}x{size}_down"] = self._block(finer, resample="down")
            for index in range(self.num_blocks):
                layers[f"{size}x{size}_block{index}"] = self._block(
                    channels, attend=size in self.attention_resolutions
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
                layers[f"{size}x{size}_block{index}"] = self._block(
                    channels, attend=size in self.attention_resolutions
                )
        return layers

    def embed_noise(self, noise_labels: Float[Array, " b"]) -> Float[Array, "b d"]:
        """Return the noise level's embedding, cosines first, before any learned layer."""
        return positional_embedding(noise_labels, self.model_channels, endpoint=False)

    def _embed(
        self, noise_labels: Float[Array, " b"], class_labels: Float[Array, "b n"] | None
    ) -> Float[Array, "b d"]:
        embedding = self.embed_noise(noise_labels)
        if self.augment_dim:
            embedding += self.map_augment(jnp.zeros((embedding.shape[0], self.augment_dim)))
        embedding = self.map_layer1(nn.silu(self.map_layer0(embedding)))
        # This map has no bias, so a missing label adds nothing; init still has to visit it.
        if self.label_dim:
            if class_labels is None:
                class_labels = jnp.zeros((embedding.shape[0], self.label_dim))
            embedding += self.map_label(class_labels)
        return nn.silu(embedding)

    def _encode(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b d"]) -> list[Array]:
        skips = []
        for layer in self.enc.values():
            x = layer(x) if isinstance(layer, Conv) else layer(x, embedding)
            skips.append(x)
        return skips

    def _decode(self, skips: list[Array], embedding: Float[Array, "b d"]) -> Array:
        skips = list(skips)
        x = skips[-1]
        for name, layer in self.dec.items():
            if "_block" in name:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = layer(x, embedding)
        return self.out_conv(nn.silu(self.out_norm(x)))
