"""The transformer of FLUX.2-klein: a noisy latent, its time and a prompt -> the flow.

Modules are called as the published weights of diffusers' Flux2Transformer2DModel call them, with
`_0` for `.0`. `transformer_config.py` builds one from a config.json; its blocks are in `blocks.py`.
No map has a bias, and all blocks of a kind share one modulation.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.flux2_klein.blocks import DoubleBlock, SingleBlock
from dmd2_jax.networks.denoising_transformer import DenoisingTransformer, Result
from dmd2_jax.networks.layers import Linear
from dmd2_jax.networks.mmdit import Modulation, modulated, rotary_tables
from dmd2_jax.networks.time_embedding import TimestepEmbedding, sinusoids
from dmd2_jax.typing import Array, DType, Float

__all__ = ["Flux2Transformer"]

_SCALE = 1000.0  # of the time, before its sinusoids


class _TimeEmbedding(nn.Module):
    features: int
    sinusoids: int
    dtype: DType

    @nn.compact
    def __call__(self, time: Float[Array, " b"]) -> Float[Array, "b d"]:
        """Return the embedding of a time."""
        x = sinusoids(time * _SCALE, self.sinusoids, cosine_first=True, freq_shift=0)
        settings = {"use_bias": False, "dtype": self.dtype, "name": "timestep_embedder"}
        return TimestepEmbedding(self.features, **settings)(x)


class Flux2Transformer(DenoisingTransformer):
    """The transformer of FLUX.2-klein: joint blocks, then blocks over one sequence.

    Blocks are counted from the first joint one. A token is one pixel of the latent, 16 x 16 pixels
    of the image.

    Attributes:
      channels: of a latent.
      heads: attention heads of every block.
      depth: number of joint blocks.
      single_depth: number of blocks over one sequence.
      width: size of a token.
      context_dim: size of a token of the prompt's embedding.
      hidden: size of the gated layers.
      axes: how many of a head's numbers turn with a reference's number (0 here), row, column and
        place in the prompt.
      theta: the longest period of the turning over 2 pi.
      time_channels: numbers of the time's sinusoids.
      eps: of the norms.

    Source: the config.json and weights of black-forest-labs/FLUX.2-klein-base-4B and -9B, as
      diffusers reads them; blocks over one sequence: Dehghani et al. 2023 (2302.05442), section 2.
    """

    channels: int
    heads: int
    depth: int
    single_depth: int
    width: int
    context_dim: int
    hidden: int
    axes: tuple[int, ...]
    theta: float = 2000.0
    time_channels: int = 256
    eps: float = 1e-6
    patch: ClassVar[int] = 1

    @property
    def num_blocks(self) -> int:
        """Number of blocks of both kinds."""
        return self.depth + self.single_depth

    @nn.compact
    def compute(
        self,
        decode: bool,
        sample: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        prompt_embeds: Float[Array, "b n d"],
    ) -> Result:
        """Return (eps - x_0, or None; features), float32.

        Args:
          decode: whether there is a prediction.
          sample: [b, h, w, c] noisy latents.
          time: [b], 0..1, 1 is noise.
          prompt_embeds: [b, n, d], the prompt's tokens and what fills it up: all are read.

        Raises:
          ValueError: if a shape does not fit the network.
        """
        self._check(sample, prompt_embeds)
        embed = _TimeEmbedding(
            self.width, self.time_channels, self.dtype, name="time_guidance_embed"
        )
        condition = embed(time)

        def modulation(name: str, chunks: int) -> tuple[Array, ...]:
            layer = Modulation(chunks, self.width, self.dtype, use_bias=False, name=name)
            return layer(condition)

        both = tuple(modulation(f"double_stream_modulation_{kind}", 6) for kind in ("txt", "img"))
        single = modulation("single_stream_modulation", 3)
        context = self._linear("context_embedder", self.width)(prompt_embeds)
        grid = self._linear("x_embedder", self.width)(sample)
        rotary = self._rotary(context.shape[1], grid.shape[1:3])
        before, features = context.shape[1], []
        tokens: Any = (context, grid.reshape(grid.shape[0], -1, self.width))
        settings = {"heads": self.heads, "hidden": self.hidden, "eps": self.eps}
        for alone, numbers in self.runs([False] * self.depth + [True] * self.single_depth, decode):
            if alone:
                tokens = jnp.concatenate(tokens, axis=1) if isinstance(tokens, tuple) else tokens
                names = [f"single_transformer_blocks_{n - self.depth}" for n in numbers]
                tokens = self.blocks(SingleBlock, settings, names, tokens, single, rotary)
            else:
                names = [f"transformer_blocks_{n}" for n in numbers]
                tokens = self.blocks(DoubleBlock, settings, names, tokens, both, rotary)
            if numbers[-1] in self.feature_blocks:
                image = tokens[:, before:] if alone else tokens[1]
                features.append(image.reshape(grid.shape).astype(jnp.float32))
        if not decode:
            return None, tuple(features)
        image = tokens[:, before:] if self.single_depth else tokens[1]
        scale, shift = modulation("norm_out", 2)
        out = self._linear("proj_out", self.channels)(modulated(image, shift, scale, self.eps))
        return out.reshape(sample.shape).astype(jnp.float32), tuple(features)

    def _linear(self, name: str, features: int) -> Linear:
        return Linear(features, use_bias=False, dtype=self.dtype, name=name)

    def _rotary(self, prompt: int, grid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tables of the prompt's tokens, at (0, 0, 0, i), and of the image's."""
        places = np.zeros((prompt + grid[0] * grid[1], len(self.axes)), np.int64)
        places[:prompt, 3] = np.arange(prompt)
        places[prompt:, 1:3] = np.indices(grid).reshape(2, -1).T
        return rotary_tables(places, self.axes, self.theta)

    def _check(self, sample: Array, prompt_embeds: Array) -> None:
        got = (sample.shape[3], prompt_embeds.shape[-1])
        if got != (self.channels, self.context_dim):
            raise Refused(
                f"latents of {got[0]} channels and prompt_embeds of width {got[1]}, expected "
                f"{self.channels} and {self.context_dim}; take text encoder and autoencoder of "
                "this network's pipeline."
            )
