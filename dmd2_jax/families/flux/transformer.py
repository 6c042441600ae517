"""The transformer of FLUX.1: a noisy latent, its time and a prompt -> the flow.

Modules are called as the published weights of diffusers' FluxTransformer2DModel call them, with
`_0` for `.0`. `transformer_config.py` builds one from a config.json. The network reads patches of
2 x 2 pixels of a latent as tokens; here its inputs and outputs are the latents themselves.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.denoising_transformer import DenoisingTransformer, Result, check_sides
from dmd2_jax.networks.layers import Linear
from dmd2_jax.networks.mmdit import (
    ConditionEmbedding,
    JointAttention,
    JointBlock,
    Modulation,
    modulated,
    rotary_tables,
)
from dmd2_jax.networks.packing import pack, unpack
from dmd2_jax.typing import Array, DType, Float

__all__ = ["PATCH", "FluxTransformer"]

PATCH = 2
"""Side of the patches that are tokens; the file's patch_size, 1, counts packed latents."""

_SCALE = 1000.0  # of the time and of the guidance, before their sinusoids
_MLP = 4


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


class FluxTransformer(DenoisingTransformer):
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

    Blocks are counted from the first joint one.

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
    patch: ClassVar[int] = PATCH

    @property
    def num_blocks(self) -> int:
        """Number of blocks of both kinds."""
        return self.depth + self.single_depth

    @nn.compact
    def compute(
        self,
        decode: bool,
        sample: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        prompt_embeds: Float[Array, "b n d"],
        pooled: Float[Array, "b p"],
        guidance: Float[Array, " b"] | None = None,
    ) -> Result:
        """Return (eps - x_0, or None; features), float32.

        Args:
          decode: whether there is a prediction.
          sample: [b, h, w, c] noisy latents; h and w even.
          timestep: [b], 0..1, 1 is noise.
          prompt_embeds: [b, n, d], the prompt's tokens.
          pooled: [b, p], the prompt as one vector.
          guidance: [b], the guidance scale, of a network that takes it.

        Raises:
          ValueError: if a shape does not fit the network.
        """
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
        kinds = [False] * self.depth + [True] * self.single_depth
        for single, numbers in self.runs(kinds, decode):
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
        settings: dict[str, Any] = {"heads": self.heads}
        kind, first = (SingleBlock, self.depth) if single else (JointBlock, 0)
        if not single:
            settings["qk_norm"] = True
        elif isinstance(tokens, tuple):
            tokens = jnp.concatenate(tokens, axis=1)
        name = "single_transformer_blocks" if single else "transformer_blocks"
        names = [f"{name}_{number - first}" for number in numbers]
        return self.blocks(kind, settings, names, tokens, condition, rotary)

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
        check_sides(sample, PATCH)
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
