"""The transformer of FLUX.1: a noisy latent, its time and a prompt -> the flow.

Modules are called as the published weights of diffusers' FluxTransformer2DModel call them, with
`_0` for `.0`. `transformer_config.py` builds one from a config.json. The network reads patches of
2 x 2 pixels of a latent as tokens; here its inputs and outputs are the latents themselves.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.block_loop import BlockLoop, blocks_in_a_row
from dmd2_jax.networks.feature_blocks import block_runs
from dmd2_jax.networks.layers import Linear
from dmd2_jax.networks.mmdit import (
    ConditionEmbedding,
    JointAttention,
    JointBlock,
    Modulation,
    modulated,
    rotary_tables,
)
from dmd2_jax.typing import Array, DType, Float

__all__ = ["PATCH", "FluxTransformer", "pack", "unpack"]

PATCH = 2
"""Side of the patches that are tokens; the file's patch_size, 1, counts packed latents."""

_SCALE = 1000.0  # of the time and of the guidance, before their sinusoids
_MLP = 4

Result = tuple[Array | None, tuple[Array, ...]]


def pack(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    """Return patches of 2 x 2 pixels as vectors, in the order channel, row, column."""
    b, h, w, c = x.shape
    patches = x.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, c).transpose(0, 1, 3, 5, 2, 4)
    return patches.reshape(b, h // PATCH, w // PATCH, c * PATCH**2)


def unpack(x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 c"]:
    """Return the pixels of `pack`'s patches."""
    b, h, w, d = x.shape
    patches = x.reshape(b, h, w, d // PATCH**2, PATCH, PATCH).transpose(0, 1, 4, 2, 5, 3)
    return patches.reshape(b, h * PATCH, w * PATCH, d // PATCH**2)


class SingleBlock(nn.Module):
    """Attention and a feed-forward layer side by side, over prompt and image as one sequence.

    Attributes:
      heads: of the attention.
      dtype: type of the computation.
    """

    heads: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        condition: Float[Array, "b d"],
        rotary: tuple[Array, Array],
    ) -> Float[Array, "b n c"]:
        """Apply the block under the embedded condition."""
        width = x.shape[-1]
        shift, scale, gate = Modulation(3, width, self.dtype, name="norm")(condition)
        inner = modulated(x, shift, scale)
        wide = Linear(_MLP * width, dtype=self.dtype, name="proj_mlp")(inner)
        attend = JointAttention(self.heads, True, "none", self.dtype, name="attn")
        read, _ = attend(inner, rotary=rotary)
        both = jnp.concatenate([read, nn.gelu(wide, approximate=True)], axis=-1)
        return x + gate * Linear(width, dtype=self.dtype, name="proj_out")(both)


class FluxTransformer(nn.Module):
    """The transformer of FLUX.1: joint blocks, then blocks over one sequence.

    Attributes:
      channels: of a latent; a token has four times as many.
      heads: attention heads of every block.
      depth: number of joint blocks.
      single_depth: number of blocks over one sequence.
      width: size of a token.
      context_dim: size of a token of the prompt's embedding.
      pooled_dim: size of the prompt as one vector.
      axes: how many of a head's numbers turn with the first position (0 always), row and column.
      guidance: whether the guidance scale is an input (dev), or not (schnell).
      feature_blocks: numbers of the blocks whose outputs are `features`, the joint ones first.
      dtype: type of the computation; the sinusoids, norms, rotations and softmax are float32.
      remat: "none"; "block": recompute each block in the backward pass; "full": everything.
      scan_layers: loop over equal blocks (networks/block_loop.py).

    Source: the config.json and weights of black-forest-labs/FLUX.1-dev, as diffusers reads them;
      the joint blocks are those of Esser et al. 2024 (2403.03206), the others Dehghani et al. 2023
      (2302.05442), section 2.
    """

    channels: int
    heads: int
    depth: int
    single_depth: int
    width: int
    context_dim: int
    pooled_dim: int
    axes: tuple[int, ...]
    guidance: bool
    feature_blocks: tuple[int, ...] = ()
    dtype: DType = jnp.float32
    remat: str = "none"
    scan_layers: bool = False

    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        prompt_embeds: Float[Array, "b n d"],
        pooled: Float[Array, "b p"],
        guidance: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Return the raw prediction, eps - x_0, float32.

        Args:
          sample: [b, h, w, c] noisy latents; h and w even.
          timestep: [b], 0..1, 1 is noise.
          prompt_embeds: [b, n, d], the prompt's tokens.
          pooled: [b, p], the prompt as one vector.
          guidance: [b], the guidance scale, of a network that takes it.

        Raises:
          ValueError: if a shape does not fit the network.
        """
        prediction, _ = self.call_with_features(sample, timestep, prompt_embeds, pooled, guidance)
        return prediction

    def features(
        self,
        sample: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        prompt_embeds: Float[Array, "b n d"],
        pooled: Float[Array, "b p"],
        guidance: Float[Array, " b"] | None = None,
    ) -> tuple[Array, ...]:
        """Return the image's tokens [b, h / 2, w / 2, width] after `feature_blocks`, float32."""
        return self._whole((sample, timestep, prompt_embeds, pooled, guidance), False)[1]

    def call_with_features(
        self,
        sample: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        prompt_embeds: Float[Array, "b n d"],
        pooled: Float[Array, "b p"],
        guidance: Float[Array, " b"] | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return (prediction, features) from one pass, float32."""
        inputs = (sample, timestep, prompt_embeds, pooled, guidance)
        prediction, features = self._whole(inputs, True)
        assert prediction is not None
        return prediction, features

    def _whole(self, inputs: tuple[Array | None, ...], decode: bool) -> Result:
        call: Callable[..., Any] = FluxTransformer._run
        if self.remat == "full":
            call = nn.remat(call, static_argnums=(6,))
        return call(self, *inputs, decode)

    @nn.compact
    def _run(
        self,
        sample: Array,
        timestep: Array,
        prompt_embeds: Array,
        pooled: Array,
        guidance: Array | None,
        decode: bool,
    ) -> Result:
        self._check(sample, prompt_embeds, pooled, guidance)
        embedding = ConditionEmbedding(
            self.width, self.guidance, dtype=self.dtype, name="time_text_embed"
        )
        scale = None if guidance is None else guidance * _SCALE
        condition = embedding(timestep * _SCALE, pooled, scale)
        context = Linear(self.width, dtype=self.dtype, name="context_embedder")(prompt_embeds)
        grid = Linear(self.width, dtype=self.dtype, name="x_embedder")(pack(sample))
        x = grid.reshape(grid.shape[0], -1, self.width)
        rotary = self._rotary(context.shape[1], grid.shape[1:3])
        before, features = context.shape[1], []
        tokens: Any = (context, x)
        runs = block_runs(
            [False] * self.depth + [True] * self.single_depth,
            (*self.feature_blocks, self.depth - 1),
        )
        for single, numbers in runs:
            if not decode and len(features) == len(self.feature_blocks):
                break
            tokens = self._blocks(single, numbers, tokens, condition, rotary)
            if numbers[-1] in self.feature_blocks:
                image = tokens[:, before:] if single else tokens[1]
                features.append(image.reshape(grid.shape).astype(jnp.float32))
        prediction = None
        if decode:
            image = tokens[:, before:] if self.single_depth else tokens[1]
            prediction = self._decode(image, condition, grid.shape)
        return prediction, tuple(features)

    def _blocks(
        self, single: bool, numbers: tuple[int, ...], tokens: Any, condition: Array, rotary: Any
    ) -> Any:
        """Apply a run of equal blocks to (prompt, image), or to both as one sequence."""
        settings: dict[str, Any] = {"heads": self.heads, "dtype": self.dtype}
        kind, first = (SingleBlock, self.depth) if single else (JointBlock, 0)
        if not single:
            settings["qk_norm"] = True
        elif isinstance(tokens, tuple):
            tokens = jnp.concatenate(tokens, axis=1)
        name = "single_transformer_blocks" if single else "transformer_blocks"
        names = [f"{name}_{number - first}" for number in numbers]
        loop = BlockLoop(self.remat, self.scan_layers, self.dtype)
        return blocks_in_a_row(self, kind, settings, names, tokens, condition, rotary, loop=loop)

    def _rotary(self, prompt: int, grid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tables of prompt tokens, all at the origin, and of the image's."""
        rows, columns = np.indices(grid).reshape(2, -1)
        image = np.stack([np.zeros_like(rows), rows, columns], axis=-1)
        positions = np.concatenate([np.zeros((prompt, 3), image.dtype), image])
        return rotary_tables(positions, self.axes)

    def _decode(self, x: Array, condition: Array, grid: tuple[int, ...]) -> Float[Array, "..."]:
        """Return the latent that the last tokens mean."""
        scale, shift = Modulation(2, self.width, self.dtype, name="norm_out")(condition)
        layer = Linear(self.channels * PATCH**2, dtype=self.dtype, name="proj_out")
        x = layer(modulated(x, shift, scale))
        return unpack(x.reshape(*grid[:3], -1)).astype(jnp.float32)

    def _check(
        self, sample: Array, prompt_embeds: Array, pooled: Array, guidance: Array | None
    ) -> None:
        height, width = sample.shape[1:3]
        if height % PATCH or width % PATCH:
            raise Refused(
                f"latents of {height} x {width}, expected sides divisible by {PATCH}; choose "
                "another resolution."
            )
        got = (sample.shape[3], prompt_embeds.shape[-1], pooled.shape[-1])
        if got != (self.channels, self.context_dim, self.pooled_dim):
            raise Refused(
                f"latents of {got[0]} channels, prompt_embeds of width {got[1]} and pooled of "
                f"{got[2]}, expected {self.channels}, {self.context_dim} and {self.pooled_dim}; "
                "take text encoders and autoencoder of this network's pipeline."
            )
        if (guidance is None) == self.guidance:
            raise Refused(
                f"got {'no guidance' if guidance is None else 'a guidance'}, expected "
                f"{'one, a scale a sample' if self.guidance else 'none'}: FLUX.1-dev takes it, "
                "schnell does not; check guidance_embeds in config.json."
            )
