"""The transformer of Qwen-Image: a noisy latent, its time and a prompt -> the flow.

`transformer_config.py` builds one from a config.json. Its blocks are those of SD 3, called by other
names in the published weights, and turned by places as FLUX.1's are.

Prompts of several lengths stand side by side, filled up to one number of tokens n. What fills them
up is not read, so that a prompt gives the same image in any n.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.denoising_transformer import DenoisingTransformer, Result, check_sides
from dmd2_jax.networks.layers import Linear
from dmd2_jax.networks.mmdit import ConditionEmbedding, JointBlock, Modulation, modulated
from dmd2_jax.networks.packing import pack, unpack
from dmd2_jax.networks.rms_norm import RmsNorm
from dmd2_jax.typing import Array, Float

__all__ = ["PATCH", "QwenImageTransformer"]

PATCH = 2
"""Side of the patches that are tokens."""

_SCALE = 1000.0  # of the time, before its sinusoids
_THETA = 10000.0
_PLACES = 4096  # of each axis, on either side of the centre


class QwenImageTransformer(DenoisingTransformer):
    """The transformer of Qwen-Image: joint blocks alone.

    Attributes:
      channels: of a latent; a token has four times as many.
      heads: attention heads of every block.
      depth: number of blocks.
      width: size of a token.
      context_dim: size of a token of the prompt's embedding.
      axes: how many of a head's numbers turn with the frame (0 always), row and column.

    Source: the config.json and weights of Qwen/Qwen-Image, as diffusers reads them; Wu et al. 2025
      (2508.02324), section 2.
    """

    channels: int
    heads: int
    depth: int
    width: int
    context_dim: int
    axes: tuple[int, ...]
    patch: ClassVar[int] = PATCH

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
        prompt_mask: Float[Array, "b n"],
    ) -> Result:
        """Return (eps - x_0, or None; features), float32.

        Args:
          decode: whether there is a prediction.
          sample: [b, h, w, c] noisy latents; h and w even.
          timestep: [b], 0..1, 1 is noise.
          prompt_embeds: [b, n, d], the prompts' tokens first.
          prompt_mask: [b, n], 1 where a prompt has a token, 0 behind its end.

        Raises:
          ValueError: if a shape does not fit the network.
        """
        self._check(sample, prompt_embeds, prompt_mask)
        embedding = ConditionEmbedding(self.width, dtype=self.dtype, name="time_text_embed")
        condition = embedding(timestep * _SCALE)
        context = RmsNorm(name="txt_norm")(prompt_embeds.astype(self.dtype))
        context = Linear(self.width, dtype=self.dtype, name="txt_in")(context)
        grid = Linear(self.width, dtype=self.dtype, name="img_in")(pack(sample))
        tokens = context, grid.reshape(grid.shape[0], -1, self.width)
        rotary = self._rotary(context.shape[1], grid.shape[1:3])
        lengths = (prompt_mask > 0.5).sum(axis=1)
        settings: dict[str, Any] = {"heads": self.heads, "qk_norm": True}
        features: list[Array] = []
        for _, run in self.runs([0] * self.depth, decode):
            names = [f"transformer_blocks_{number}" for number in run]
            tokens = self.blocks(JointBlock, settings, names, tokens, condition, rotary, lengths)
            if run[-1] in self.feature_blocks:
                features.append(tokens[1].reshape(grid.shape).astype(jnp.float32))
        if not decode:
            return None, tuple(features)
        scale, shift = Modulation(2, self.width, self.dtype, name="norm_out")(condition)
        layer = Linear(self.channels * PATCH**2, dtype=self.dtype, name="proj_out")
        patches = layer(modulated(tokens[1], shift, scale)).reshape(*grid.shape[:3], -1)
        return unpack(patches).astype(jnp.float32), tuple(features)

    def _rotary(self, prompt: int, grid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tables of prompt tokens, then of the image's, whose centre is at 0.

        A prompt's token i is at i + max(h // 2, w // 2) on all axes. The angles are float32, as the
        field has them: at a place of 1000 its rounding is 3e-5.
        """
        rows, columns = np.indices(grid).reshape(2, -1)
        before = [side - side // 2 for side in grid]
        image = np.stack([np.zeros_like(rows), rows - before[0], columns - before[1]], axis=-1)
        own = np.repeat(np.arange(prompt)[:, None] + max(grid) // 2, len(self.axes), axis=1)
        angles = []
        for axis, size in enumerate(self.axes):
            exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
            frequencies = np.float32(1) / np.float32(_THETA) ** exponents
            places = np.concatenate([own, image])[:, axis, None].astype(np.float32)
            angles.append(places * frequencies)
        both = np.concatenate(angles, axis=-1)
        return np.cos(both), np.sin(both)

    def _check(self, sample: Array, prompt_embeds: Array, prompt_mask: Array) -> None:
        check_sides(sample, PATCH)
        height, width = sample.shape[1:3]
        got = (sample.shape[3], prompt_embeds.shape[-1])
        if got != (self.channels, self.context_dim):
            raise Refused(
                f"latents of {got[0]} channels and prompt_embeds of width {got[1]}, expected "
                f"{self.channels} and {self.context_dim}; take text encoder and autoencoder of "
                "this network's pipeline."
            )
        if prompt_mask.shape != prompt_embeds.shape[:2]:
            raise Refused(
                f"prompt_embeds {list(prompt_embeds.shape)} with prompt_mask "
                f"{list(prompt_mask.shape)}, expected 1 or 0 for each token; fill the prompts up, "
                "with 0 in the mask."
            )
        last = max(height, width) // PATCH // 2 + prompt_embeds.shape[1]
        if last > _PLACES:
            raise Refused(
                f"latents of {height} x {width} and prompts of {prompt_embeds.shape[1]} tokens "
                f"need {last} places, expected at most {_PLACES}; choose a smaller image or a "
                "shorter prompt."
            )
