"""The transformer of SD 3 and 3.5: a noisy latent, its time and a prompt -> the flow.

Modules are called as the published weights of diffusers' SD3Transformer2DModel call them, with
`_0` for `.0`. `transformer_config.py` builds one from a config.json.
"""

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.denoising_transformer import DenoisingTransformer, Result
from dmd2_jax.networks.layers import Linear
from dmd2_jax.networks.mmdit import ConditionEmbedding, JointBlock, Modulation, modulated
from dmd2_jax.networks.patch_embedding import PatchEmbedding
from dmd2_jax.typing import Array, Float

__all__ = ["SD3Transformer"]


class SD3Transformer(DenoisingTransformer):
    """The joint transformer of SD 3, 3.5 medium and 3.5 large.

    Attributes:
      in_channels, out_channels: of the latents.
      patch: side of a patch.
      heads: attention heads of every block.
      depth: number of blocks.
      width: size of a token.
      context_dim: size of a token of the prompt's embedding.
      pooled_dim: size of the prompt as one vector.
      table_side: side of the table of positions; larger latents have no places.
      base_side: patches a side of the latents that the network was made for.
      qk_norm: whether queries and keys are normalised (SD 3.5).
      dual: numbers of the blocks with a second attention (SD 3.5 medium).

    Source: Esser et al. 2024 (2403.03206), section 4 and figure 2.
    """

    in_channels: int
    out_channels: int
    patch: int
    heads: int
    depth: int
    width: int
    context_dim: int
    pooled_dim: int
    table_side: int
    base_side: int
    qk_norm: bool
    dual: tuple[int, ...] = ()

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.depth

    @nn.compact
    def compute(
        self,
        decode: bool,
        sample: Float[Array, "b h w c"],
        timestep: Float[Array, " b"],
        prompt_embeds: Float[Array, "b n d"],
        pooled: Float[Array, "b p"],
    ) -> Result:
        """Return (eps - x_0, or None; features), float32.

        Args:
          decode: whether there is a prediction.
          sample: [b, h, w, c] noisy latents; h and w divisible by the patch.
          timestep: [b], 0..1000, 1000 is noise.
          prompt_embeds: [b, n, d], the prompt's tokens.
          pooled: [b, p], the prompt as one vector.

        Raises:
          ValueError: if a shape does not fit the network.
        """
        self._check(sample, prompt_embeds, pooled)
        embed = PatchEmbedding(
            self.width, self.patch, self.table_side, self.base_side, self.dtype, name="pos_embed"
        )
        grid = embed(sample)
        embedding = ConditionEmbedding(self.width, dtype=self.dtype, name="time_text_embed")
        condition = embedding(timestep, pooled)
        context = Linear(self.width, dtype=self.dtype, name="context_embedder")(prompt_embeds)
        tokens = (context, grid.reshape(grid.shape[0], -1, self.width))
        kinds, features = [(n in self.dual, n == self.depth - 1) for n in range(self.depth)], []
        for (dual, last), numbers in self.runs(kinds, decode):
            settings = {"heads": self.heads, "qk_norm": self.qk_norm, "dual": dual, "last": last}
            names = [f"transformer_blocks_{number}" for number in numbers]
            tokens = self.blocks(JointBlock, settings, names, tokens, condition)
            if numbers[-1] in self.feature_blocks:
                features.append(tokens[1].reshape(grid.shape).astype(jnp.float32))
        prediction = self._decode(tokens[1], condition, sample.shape) if decode else None
        return prediction, tuple(features)

    def _decode(self, x: Array, condition: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Return the latent that the last tokens mean."""
        scale, shift = Modulation(2, self.width, self.dtype, name="norm_out")(condition)
        features, p = self.out_channels * self.patch**2, self.patch
        x = Linear(features, dtype=self.dtype, name="proj_out")(modulated(x, shift, scale))
        b, h, w = shape[0], shape[1] // p, shape[2] // p
        patches = x.reshape(b, h, w, p, p, self.out_channels).swapaxes(2, 3)
        return patches.reshape(b, h * p, w * p, self.out_channels).astype(jnp.float32)

    def _check(self, sample: Array, prompt_embeds: Array, pooled: Array) -> None:
        height, width = sample.shape[1:3]
        largest = self.table_side * self.patch
        if height % self.patch or width % self.patch or max(height, width) > largest:
            raise Refused(
                f"latents of {height} x {width}, expected sides divisible by {self.patch} and at "
                f"most {largest}, where the network's table of positions ends; choose another "
                "resolution."
            )
        got = (sample.shape[3], prompt_embeds.shape[-1], pooled.shape[-1])
        if got != (self.in_channels, self.context_dim, self.pooled_dim):
            raise Refused(
                f"latents of {got[0]} channels, prompt_embeds of width {got[1]} and pooled of "
                f"{got[2]}, expected {self.in_channels}, {self.context_dim} and "
                f"{self.pooled_dim}; take text encoders and autoencoder of this network's pipeline."
            )
