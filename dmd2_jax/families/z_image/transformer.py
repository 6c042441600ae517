"""The transformer of Z-Image: a noisy latent, its time and a prompt -> the flow.

`transformer_config.py` builds one from a config.json; its blocks are in `blocks.py`. Time here is
that of the published network: 1 is data, and it predicts x_0 - eps; `family.py` turns both.

Prompts of several lengths stand side by side, filled up to one number of tokens n, a multiple of
32. What fills a prompt up to the next multiple of 32 are learned tokens that are attended; what
comes after is not read. So a prompt gives the same image in any n.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.z_image.blocks import ZImageBlock
from dmd2_jax.networks.denoising_transformer import DenoisingTransformer, Result, check_sides
from dmd2_jax.networks.layers import Embedding, Linear
from dmd2_jax.networks.mmdit import modulated
from dmd2_jax.networks.rms_norm import RmsNorm
from dmd2_jax.networks.time_embedding import sinusoids
from dmd2_jax.typing import Array, DType, Float, Int

__all__ = ["MULTIPLE", "PATCH", "ZImageTransformer", "condition_width"]

PATCH = 2
"""Side of the patches that are tokens."""

MULTIPLE = 32
"""Prompts and images are filled up to a multiple of so many tokens."""

_SINUSOIDS = 256
_TIME_HIDDEN = 1024
_FINAL_EPS = 1e-6

Rotary = tuple[Array, Array]


def condition_width(width: int) -> int:
    """Return the size of the embedded time, of a network with tokens of a width."""
    return min(width, 256)


class _TimeEmbedding(nn.Module):
    features: int
    dtype: DType

    @nn.compact
    def __call__(self, time: Float[Array, " b"]) -> Float[Array, "b d"]:
        """Return the embedding of a time."""
        x = sinusoids(time, _SINUSOIDS, cosine_first=True, freq_shift=0)
        h = nn.silu(Linear(_TIME_HIDDEN, dtype=self.dtype, name="mlp_0")(x))
        return Linear(self.features, dtype=self.dtype, name="mlp_2")(h)


class _FinalLayer(nn.Module):
    features: int
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], condition: Float[Array, "b d"]) -> Array:
        """Return the pixels of each token's patch."""
        layer = Linear(x.shape[-1], dtype=self.dtype, name="adaLN_modulation_1")
        scale = layer(nn.silu(condition))[:, None]
        x = modulated(x, jnp.zeros_like(scale), scale, _FINAL_EPS)
        return Linear(self.features, dtype=self.dtype, name="linear")(x)


class ZImageTransformer(DenoisingTransformer):
    """The single-stream transformer of Z-Image.

    Attributes:
      channels: of a latent.
      heads: attention heads of every block.
      depth: number of blocks over image and prompt as one sequence.
      refiners: number of blocks over each of them before.
      width: size of a token.
      context_dim: size of a token of the prompt's embedding.
      axes: how many of a head's numbers turn with the place in the prompt, row and column.
      places: how many places each axis has.
      theta: the longest period of the turning over 2 pi.
      time_scale: of the time, before its sinusoids.
      eps: of the blocks' norms.
      qk_norm: whether queries and keys are normalised.

    Source: the config.json and weights of Tongyi-MAI/Z-Image, as diffusers reads them; Cai et al.
      2025 (2511.22699).
    """

    channels: int
    heads: int
    depth: int
    refiners: int
    width: int
    context_dim: int
    axes: tuple[int, ...]
    places: tuple[int, ...]
    theta: float = 256.0
    time_scale: float = 1000.0
    eps: float = 1e-5
    qk_norm: bool = True
    patch: ClassVar[int] = PATCH

    @property
    def num_blocks(self) -> int:
        """Number of blocks over image and prompt."""
        return self.depth

    @nn.compact
    def compute(
        self,
        decode: bool,
        sample: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        prompt_embeds: Float[Array, "b n d"],
        prompt_mask: Float[Array, "b n"],
    ) -> Result:
        """Return (x_0 - eps, or None; features), float32.

        Args:
          decode: whether there is a prediction.
          sample: [b, h, w, c] noisy latents; h and w even.
          time: [b], 0..1, 0 is noise.
          prompt_embeds: [b, n, d], the prompts' tokens first, n a multiple of 32.
          prompt_mask: [b, n], 1 where a prompt has a token, 0 behind its end.

        Raises:
          ValueError: if a shape does not fit the network.
        """
        self._check(sample, prompt_embeds, prompt_mask)
        b, height, width, _ = sample.shape
        grid, prompt = (height // PATCH, width // PATCH), prompt_embeds.shape[1]
        tokens = grid[0] * grid[1]
        embedding = condition_width(self.width)
        embed = _TimeEmbedding(embedding, self.dtype, name="t_embedder")
        condition = embed(time * self.time_scale)
        # Up to here a prompt is read: its tokens, and those that fill it up to a multiple.
        lengths = self._lengths(prompt_mask)
        own, image = self._rotary(grid, prompt, lengths)

        x = Linear(self.width, dtype=self.dtype, name="x_embedder")(_patches(sample))
        filling = jnp.broadcast_to(self._pad("x_pad_token"), (b, -tokens % MULTIPLE, self.width))
        x = jnp.concatenate([x, filling], axis=1)
        x = self._kind("noise_refiner", range(self.refiners), x, condition, image, None)

        context = RmsNorm(self.eps, name="cap_embedder_0")(prompt_embeds.astype(self.dtype))
        context = Linear(self.width, dtype=self.dtype, name="cap_embedder_1")(context)
        context = jnp.where(prompt_mask[..., None] > 0.5, context, self._pad("cap_pad_token"))
        numbers = range(self.refiners)
        context = self._kind("context_refiner", numbers, context, condition, own, lengths)

        cosines, sines = (
            jnp.concatenate([first, jnp.broadcast_to(then, (b, *then.shape))], axis=1)
            for first, then in zip(image, own, strict=True)
        )
        before, features = x.shape[1], []
        x = jnp.concatenate([x, context], axis=1)
        for _, run in self.runs([0] * self.depth, decode):
            x = self._kind("layers", run, x, condition, (cosines, sines), before + lengths)
            if run[-1] in self.feature_blocks:
                features.append(x[:, :tokens].reshape(b, *grid, -1).astype(jnp.float32))
        if not decode:
            return None, tuple(features)
        layer = _FinalLayer(self.channels * PATCH**2, self.dtype, name="final_layer")
        pixels = layer(x[:, :tokens], condition).reshape(b, *grid, PATCH, PATCH, self.channels)
        out = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(sample.shape)
        return out.astype(jnp.float32), tuple(features)

    def _pad(self, name: str) -> Array:
        """Return the learned token that fills up, [1, width]: a table of one row."""
        return Embedding(1, self.width, scale=0.0, dtype=self.dtype, name=name)(jnp.zeros(1, int))

    def _kind(
        self,
        name: str,
        numbers: Any,
        x: Array,
        condition: Array,
        rotary: Rotary,
        lengths: Array | None,
    ) -> Array:
        """Apply some of the blocks of a kind."""
        settings: dict[str, Any] = {"heads": self.heads, "eps": self.eps, "qk_norm": self.qk_norm}
        settings |= {"modulation": name != "context_refiner"}
        names = [f"{name}_{number}" for number in numbers]
        return self.blocks(ZImageBlock, settings, names, x, condition, rotary, lengths)

    @staticmethod
    def _lengths(prompt_mask: Float[Array, "b n"]) -> Int[Array, " b"]:
        """Return how many tokens of each prompt are read, a multiple of 32."""
        counts = (prompt_mask > 0.5).sum(axis=1)
        return -(-counts // MULTIPLE) * MULTIPLE

    def _rotary(
        self, grid: tuple[int, int], prompt: int, lengths: Int[Array, " b"]
    ) -> tuple[Rotary, Rotary]:
        """Return the tables of a prompt's tokens [n, e], and of an image's, filled up, [b, m, e].

        A prompt's token i is at (1 + i, 0, 0), an image's at (1 + length, row, column), what fills
        an image up at (0, 0, 0).
        """
        first = self._turned(0, np.arange(prompt + 2))
        rows, columns = np.indices(grid).reshape(2, -1)
        later = [self._turned(1, rows), self._turned(2, columns)]
        still = [self._turned(axis, np.zeros(prompt, int)) for axis in (1, 2)]
        filling = -len(rows) % MULTIPLE
        own, image = [], []
        for part in (0, 1):  # cosines, sines
            turned = np.concatenate([first[part][1:-1], *(s[part] for s in still)], axis=-1)
            own.append(jnp.asarray(turned))
            place = jnp.asarray(first[part])[1 + lengths][:, None]
            place = jnp.broadcast_to(place, (len(lengths), len(rows), place.shape[-1]))
            grid_turned = np.concatenate([axis[part] for axis in later], axis=-1)
            inside = jnp.broadcast_to(grid_turned, (len(lengths), *grid_turned.shape))
            tokens = jnp.concatenate([place, inside], axis=-1)
            ends = ((0, 0), (0, filling), (0, 0))
            image.append(jnp.pad(tokens, ends, constant_values=1.0 - part))
        return (own[0], own[1]), (image[0], image[1])

    def _turned(self, axis: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines and sines of an axis' angles, which are rounded before: float32."""
        size = self.axes[axis]
        angles = positions[:, None] * (1.0 / self.theta ** (np.arange(0, size, 2) / size))
        rounded = angles.astype(np.float32)
        return np.cos(rounded), np.sin(rounded)

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
        tokens = prompt_embeds.shape[1]
        if prompt_mask.shape != prompt_embeds.shape[:2] or tokens % MULTIPLE:
            raise Refused(
                f"prompt_embeds of {tokens} tokens with prompt_mask {list(prompt_mask.shape)}, "
                f"expected a multiple of {MULTIPLE} tokens, and 1 or 0 for each of them; fill the "
                "prompts up, with 0 in the mask."
            )
        most = (tokens + 2, height // PATCH, width // PATCH)
        if any(a > b for a, b in zip(most, self.places, strict=True)):
            raise Refused(
                f"{tokens} tokens and latents of {height} x {width} need {list(most)} places, "
                f"expected at most {list(self.places)} (axes_lens); choose a smaller image or a "
                "shorter prompt."
            )


def _patches(x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
    """Return patches of 2 x 2 pixels as vectors, in the order row, column, channel."""
    b, h, w, c = x.shape
    patches = x.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, c).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(b, -1, c * PATCH**2)
