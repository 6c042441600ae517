"""Stable Diffusion's U-Net: a noisy latent, its time and a prompt's embedding -> eps or v.

Modules are called as the published weights of diffusers' UNet2DConditionModel call them, with
`_0` for `.0`. `unet_config.py` builds one from a config.json.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.stable_diffusion.unet_blocks import BlockStyle, DownBlock, MidBlock, UpBlock
from dmd2_jax.networks.layers import Conv, GroupNorm
from dmd2_jax.networks.time_embedding import TimestepEmbedding, sinusoids
from dmd2_jax.typing import Array, DType, Float

__all__ = ["StableDiffusionUNet"]


class AddedCondition(NamedTuple):
    """SDXL's second condition: the pooled prompt and the sizes of the image.

    Attributes:
      time_features: size of each embedded number of `time_ids`.
      total: size of the pooled prompt and of the embedded numbers together.
    """

    time_features: int
    total: int


class StableDiffusionUNet(nn.Module):
    """The latent-diffusion U-Net of SD 1.x, SD 2.x and SDXL.

    Attributes:
      in_channels, out_channels: of the latents.
      block_channels: one width a level, finest first.
      layers: residual blocks of each level of the encoder (one more in the decoder).
      down_depths, up_depths: transformer blocks after each residual block, a level an entry, in the
        order of execution; 0: none.
      mid_depth: transformer blocks in the middle.
      heads: attention heads of each level, finest first.
      context_dim: size of a token of the prompt's embedding.
      linear: whether the transformers' outer maps are stored as linear layers.
      time_dim: size of the time embedding.
      time_condition_dim: size of `timestep_cond`, or None.
      added: SDXL's second condition, or None.
      groups, eps: of the group norms.
      cosine_first, freq_shift: of the embedded numbers, see `sinusoids`.
      dtype: type of the computation; parameters and outputs are float32.
      remat: what the backward pass computes again instead of keeping it: "none"; "block": what is
        inside of each residual block and each transformer block; "full": those blocks' inputs too,
        and the copies of weights that `scan_layers` makes.
      scan_layers: loop over the blocks of each transformer, see `SpatialTransformer`.

    Source: Rombach et al. 2022 (2112.10752); Podell et al. 2023 (2307.01952), section 2.
    """

    in_channels: int
    out_channels: int
    block_channels: tuple[int, ...]
    layers: tuple[int, ...]
    down_depths: tuple[int, ...]
    up_depths: tuple[int, ...]
    mid_depth: int
    heads: tuple[int, ...]
    context_dim: int
    linear: bool
    time_dim: int
    time_condition_dim: int | None = None
    added: AddedCondition | None = None
    groups: int = 32
    eps: float = 1e-5
    cosine_first: bool = True
    freq_shift: float = 0
    dtype: DType = jnp.float32
    remat: str = "none"
    scan_layers: bool = False

    def setup(self) -> None:
        """Name the layers as the published weights do."""
        style = BlockStyle(
            self.groups, self.eps, self.linear, self.remat, self.scan_layers, self.dtype
        )
        self.conv_in = Conv(self.block_channels[0], padding=1, dtype=self.dtype)
        self.time_embedding = TimestepEmbedding(self.time_dim, self.time_condition_dim, self.dtype)
        if self.added:
            self.add_embedding = TimestepEmbedding(self.time_dim, dtype=self.dtype)
        last = len(self.block_channels) - 1
        levels = zip(self.block_channels, self.layers, self.down_depths, self.heads, strict=True)
        self.down_blocks = [
            DownBlock(channels, layers, depth, heads, index < last, style)
            for index, (channels, layers, depth, heads) in enumerate(levels)
        ]
        self.mid_block = MidBlock(self.mid_depth, self.heads[-1], style)
        levels = zip(
            self.block_channels[::-1],
            self.layers[::-1],
            self.up_depths,
            self.heads[::-1],
            strict=True,
        )
        self.up_blocks = [
            UpBlock(channels, layers + 1, depth, heads, index < last, style)
            for index, (channels, layers, depth, heads) in enumerate(levels)
        ]
        self.conv_norm_out = GroupNorm(self.groups, self.eps)
        self.conv_out = Conv(self.out_channels, padding=1, dtype=self.dtype)

    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        encoder_hidden_states: Float[Array, "b n d"],
        text_embeds: Float[Array, "b e"] | None = None,
        time_ids: Float[Array, "b i"] | None = None,
        timestep_cond: Float[Array, "b f"] | None = None,
    ) -> Float[Array, "b h w c2"]:
        """Return the raw prediction, float32.

        Args:
          sample: [b, h, w, c] noisy latents; h and w divisible by 2^(levels - 1).
          timestep: [b], 0..999.
          encoder_hidden_states: [b, n, d], the prompt's tokens.
          text_embeds: [b, e], the pooled prompt (SDXL).
          time_ids: [b, i], sizes: original height and width, top and left of the crop, target
            height and width (SDXL).
          timestep_cond: [b, f], an embedded guidance scale (models with time_cond_proj_dim).

        Raises:
          ValueError: if a shape does not fit the network, or a condition is missing or too many.
        """
        return self.call_with_bottleneck(
            sample, timestep, encoder_hidden_states, text_embeds, time_ids, timestep_cond
        )[0]

    def bottleneck(
        self,
        sample: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        encoder_hidden_states: Float[Array, "b n d"],
        text_embeds: Float[Array, "b e"] | None = None,
        time_ids: Float[Array, "b i"] | None = None,
        timestep_cond: Float[Array, "b f"] | None = None,
    ) -> Float[Array, "b h2 w2 k"]:
        """Return the middle block's output, float32; no decoder is traced."""
        return self.features(
            sample, timestep, encoder_hidden_states, text_embeds, time_ids, timestep_cond
        )[-1]

    def features(
        self,
        sample: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        encoder_hidden_states: Float[Array, "b n d"],
        text_embeds: Float[Array, "b e"] | None = None,
        time_ids: Float[Array, "b i"] | None = None,
        timestep_cond: Float[Array, "b f"] | None = None,
    ) -> tuple[Array, ...]:
        """Return every output of the encoder and then the middle block's, float32."""
        return self._whole(StableDiffusionUNet._features)(
            self, sample, timestep, encoder_hidden_states, text_embeds, time_ids, timestep_cond
        )

    def call_with_bottleneck(
        self,
        sample: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        encoder_hidden_states: Float[Array, "b n d"],
        text_embeds: Float[Array, "b e"] | None = None,
        time_ids: Float[Array, "b i"] | None = None,
        timestep_cond: Float[Array, "b f"] | None = None,
    ) -> tuple[Float[Array, "b h w c2"], Float[Array, "b h2 w2 k"]]:
        """Return (prediction, the middle block's output) from one pass, both float32."""
        return self._whole(StableDiffusionUNet._predict)(
            self, sample, timestep, encoder_hidden_states, text_embeds, time_ids, timestep_cond
        )

    def _whole(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return nn.remat(call) if self.remat == "full" else call

    def _features(
        self, sample: Array, timestep: Array, context: Array, *conditions: Array | None
    ) -> tuple[Array, ...]:
        embedding = self._embed(timestep, *conditions)
        skips, middle = self._encode(sample, embedding, context)
        return tuple(feature.astype(jnp.float32) for feature in (*skips, middle))

    def _predict(
        self, sample: Array, timestep: Array, context: Array, *conditions: Array | None
    ) -> tuple[Array, Array]:
        embedding = self._embed(timestep, *conditions)
        skips, middle = self._encode(sample, embedding, context)
        x = middle
        for block in self.up_blocks:
            x = block(x, skips[-block.layers :], embedding, context)
            skips = skips[: -block.layers]
        x = self.conv_out(nn.silu(self.conv_norm_out(x)))
        return x.astype(jnp.float32), middle.astype(jnp.float32)

    def embed_time(self, timestep: Float[Array, " b"]) -> Float[Array, "b d"]:
        """Return the time's sinusoids, before any learned layer."""
        return self._sinusoids(timestep, self.block_channels[0])

    def _sinusoids(self, values: Float[Array, " b"], features: int) -> Float[Array, "b d"]:
        return sinusoids(
            values, features, cosine_first=self.cosine_first, freq_shift=self.freq_shift
        )

    def _embed(
        self,
        timestep: Float[Array, " b"],
        text_embeds: Float[Array, "b e"] | None,
        time_ids: Float[Array, "b i"] | None,
        timestep_cond: Float[Array, "b f"] | None,
    ) -> Float[Array, "b d"]:
        """Return the embedding that shifts every residual block."""
        self._check_conditions(text_embeds, time_ids, timestep_cond)
        embedding = self.time_embedding(self.embed_time(timestep), timestep_cond)
        if self.added and text_embeds is not None and time_ids is not None:
            numbers = self._sinusoids(time_ids.reshape(-1), self.added.time_features)
            numbers = numbers.reshape(time_ids.shape[0], -1)
            pooled = text_embeds.astype(jnp.float32)
            embedding += self.add_embedding(jnp.concatenate([pooled, numbers], axis=-1))
        return embedding

    def _encode(
        self,
        sample: Float[Array, "b h w c"],
        embedding: Float[Array, "b d"],
        context: Float[Array, "b n d"],
    ) -> tuple[list[Array], Array]:
        """Return the encoder's outputs, finest first, and the middle block's."""
        self._check_inputs(sample, context)
        skips = [self.conv_in(sample)]
        for block in self.down_blocks:
            skips += block(skips[-1], embedding, context)
        return skips, self.mid_block(skips[-1], embedding, context)

    def _check_inputs(
        self, sample: Float[Array, "b h w c"], context: Float[Array, "b n d"]
    ) -> None:
        unit = 2 ** (len(self.block_channels) - 1)
        if sample.ndim != 4 or sample.shape[1] % unit or sample.shape[2] % unit:
            raise Refused(
                f"sample has shape {sample.shape}, expected [b, h, w, c] with h and w divisible "
                f"by {unit}; choose another resolution."
            )
        if sample.shape[3] != self.in_channels or context.shape[-1] != self.context_dim:
            raise Refused(
                f"sample {sample.shape} and encoder_hidden_states {context.shape} do not fit, "
                f"expected {self.in_channels} channels (NHWC) and tokens of {self.context_dim}; "
                "check that the text encoders are those of this U-Net."
            )

    def _check_conditions(
        self, text_embeds: Array | None, time_ids: Array | None, timestep_cond: Array | None
    ) -> None:
        if (text_embeds is None) != (self.added is None) or (time_ids is None) != (
            self.added is None
        ):
            raise Refused(
                f"got text_embeds {_shape(text_embeds)} and time_ids {_shape(time_ids)}, expected "
                + ("both" if self.added else "neither")
                + ": SDXL takes them, SD 1.x and 2.x do not; check the U-Net's config.json."
            )
        if self.added and text_embeds is not None and time_ids is not None:
            total = text_embeds.shape[-1] + time_ids.shape[-1] * self.added.time_features
            if total != self.added.total:
                raise Refused(
                    f"text_embeds {text_embeds.shape} and time_ids {time_ids.shape} make {total} "
                    f"numbers, expected {self.added.total} with {self.added.time_features} for "
                    "each time id; check that the text encoders are those of this U-Net."
                )
        if timestep_cond is not None and timestep_cond.shape[-1] != self.time_condition_dim:
            raise Refused(
                f"timestep_cond has shape {timestep_cond.shape}, expected [b, "
                f"{self.time_condition_dim}]; only models with time_cond_proj_dim take it."
            )


def _shape(array: Array | None) -> str:
    return "None" if array is None else str(array.shape)
