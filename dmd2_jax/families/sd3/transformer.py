"""The transformer of SD 3 and 3.5: a noisy latent, its time and a prompt -> the flow.

Modules are called as the published weights of diffusers' SD3Transformer2DModel call them, with
`_0` for `.0`. `transformer_config.py` builds one from a config.json.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.block_loop import BlockLoop, blocks_in_a_row
from dmd2_jax.networks.feature_blocks import block_runs
from dmd2_jax.networks.layers import Linear
from dmd2_jax.networks.mmdit import ConditionEmbedding, JointBlock, Modulation, modulated
from dmd2_jax.networks.patch_embedding import PatchEmbedding
from dmd2_jax.typing import Array, DType, Float

__all__ = ["SD3Transformer"]

Result = tuple[Array | None, tuple[Array, ...]]


class SD3Transformer(nn.Module):
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
      feature_blocks: numbers of the blocks whose outputs are `features`.
      dtype: type of the computation; the time's sinusoids, norms, rotations and softmax are
        float32.
      remat: "none"; "block": recompute each block in the backward pass; "full": everything.
      scan_layers: loop over equal blocks (networks/block_loop.py).

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
    ) -> Float[Array, "b h w c"]:
        """Return the raw prediction, eps - x_0, float32.

        Args:
          sample: [b, h, w, c] noisy latents; h and w divisible by the patch.
          timestep: [b], 0..1000, 1000 is noise.
          prompt_embeds: [b, n, d], the prompt's tokens.
          pooled: [b, p], the prompt as one vector.

        Raises:
          ValueError: if a shape does not fit the network.
        """
        prediction, _ = self.call_with_features(sample, timestep, prompt_embeds, pooled)
        return prediction

    def features(self, *inputs: Array) -> tuple[Array, ...]:
        """Return the image's tokens [b, h / p, w / p, width] after `feature_blocks`, float32."""
        return self._whole(inputs, False)[1]

    def call_with_features(self, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
        """Return (prediction, features) from one pass, float32."""
        prediction, features = self._whole(inputs, True)
        assert prediction is not None
        return prediction, features

    def _whole(self, inputs: tuple[Array, ...], decode: bool) -> Result:
        call: Callable[..., Any] = SD3Transformer._run
        if self.remat == "full":
            call = nn.remat(call, static_argnums=(5,))
        return call(self, *inputs, decode)

    @nn.compact
    def _run(
        self, sample: Array, timestep: Array, prompt_embeds: Array, pooled: Array, decode: bool
    ) -> Result:
        self._check(sample, prompt_embeds, pooled)
        embed = PatchEmbedding(
            self.width, self.patch, self.table_side, self.base_side, self.dtype, name="pos_embed"
        )
        grid = embed(sample)
        embedding = ConditionEmbedding(self.width, dtype=self.dtype, name="time_text_embed")
        condition = embedding(timestep, pooled)
        context = Linear(self.width, dtype=self.dtype, name="context_embedder")(prompt_embeds)
        tokens = (context, grid.reshape(grid.shape[0], -1, self.width))
        loop, features = BlockLoop(self.remat, self.scan_layers, self.dtype), []
        kinds = [(n in self.dual, n == self.depth - 1) for n in range(self.depth)]
        for (dual, last), numbers in block_runs(kinds, self.feature_blocks):
            if not decode and len(features) == len(self.feature_blocks):
                break
            settings = {"heads": self.heads, "qk_norm": self.qk_norm, "dtype": self.dtype}
            names = [f"transformer_blocks_{number}" for number in numbers]
            tokens = blocks_in_a_row(
                self,
                JointBlock,
                settings | {"dual": dual, "last": last},
                names,
                tokens,
                condition,
                loop=loop,
            )
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
