"""The transformer of DiT and SiT: a noisy image or latent, its time and a class -> a prediction.

Modules are called as the published weights of diffusers' DiTTransformer2DModel call them, with `_0`
for `.0`; an embedding of time and class that all blocks share stands beside them.

Source: Peebles and Xie 2022 (2212.09748), section 3; Ma et al. 2024 (2401.08740).
"""

from typing import Any

import einops
import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.denoising_transformer import DenoisingTransformer, Result
from dmd2_jax.networks.layers import ZEROS, Conv, Embedding, Linear
from dmd2_jax.networks.mmdit import JointAttention, Mlp, modulated
from dmd2_jax.networks.patch_embedding import position_table
from dmd2_jax.networks.time_embedding import TimestepEmbedding, sinusoids
from dmd2_jax.runtime.gathering import inside
from dmd2_jax.typing import Array, DType, Float, Int

__all__ = ["ClassTransformer"]

_SINUSOIDS = 256


class _TimeAndClass(nn.Module):
    """The sum of the embedded time and class.

    Attributes:
      features: size of the embedding.
      num_classes: the row after these is of no class; 0: the network knows of none.
      freq_shift: of the sinusoids.
      dtype: type of the computation; the sinusoids are float32.
    """

    features: int
    num_classes: int
    freq_shift: float
    dtype: DType

    @nn.compact
    def __call__(
        self, time: Float[Array, " b"], label: Int[Array, " b"] | None
    ) -> Float[Array, "b d"]:
        """Return the embedding."""
        waves = sinusoids(time, _SINUSOIDS, cosine_first=True, freq_shift=self.freq_shift)
        layer = TimestepEmbedding(self.features, dtype=self.dtype, name="timestep_embedder")
        embedded = layer(waves)
        if not self.num_classes:
            return embedded
        table = _Table(self.num_classes + 1, self.features, self.dtype, name="class_embedder")
        return embedded + table(label)


class _Table(nn.Module):
    rows: int
    features: int
    dtype: DType

    @nn.compact
    def __call__(self, label: Int[Array, " b"]) -> Float[Array, "b d"]:
        """Return the rows of the labels."""
        table = Embedding(self.rows, self.features, dtype=self.dtype, name="embedding_table")
        return table(label)


class _Norm(nn.Module):
    """Shifts, scales and gates of a block, from the shared embedding or from one of its own."""

    features: int
    own: tuple[int, float] | None
    dtype: DType

    @nn.compact
    def __call__(self, condition: Any) -> list[Array]:
        """Return six arrays [b, 1, features]: shift, scale, gate of attention, then of the MLP."""
        if self.own is not None:
            embed = _TimeAndClass(self.features, *self.own, self.dtype, name="emb")
            condition = embed(*condition)
        layer = Linear(6 * self.features, kernel_init=ZEROS, bias_init=ZEROS, dtype=self.dtype,
                       name="linear")  # fmt: skip
        return jnp.split(layer(nn.silu(condition))[:, None], 6, axis=-1)


class _Block(nn.Module):
    """Attention and a feed-forward layer, each modulated and gated by the condition."""

    heads: int
    eps: float
    own: tuple[int, float] | None
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], condition: Any) -> Float[Array, "b n c"]:
        """Apply the block under the embedding, or under (time, label) where it has its own."""
        norm = _Norm(x.shape[-1], self.own, self.dtype, name="norm1")
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = norm(condition)
        attend = JointAttention(self.heads, False, "image", self.dtype, name="attn1")
        x = x + gate * attend(modulated(x, shift, scale))[0]
        hidden = modulated(x, shift_mlp, scale_mlp, self.eps)
        return x + gate_mlp * Mlp(self.dtype, name="ff")(hidden)


class _Patches(nn.Module):
    """Patches as tokens on their grid, with the sines and cosines of their places."""

    features: int
    patch: int
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Return the tokens."""
        tokens = Conv(self.features, self.patch, stride=self.patch, dtype=self.dtype, name="proj")(
            x
        )
        height, width = tokens.shape[1:3]
        side = max(height, width)
        places = position_table(side, side, self.features)[:height, :width]
        return (tokens + places).astype(self.dtype)


class ClassTransformer(DenoisingTransformer):
    """DiT's transformer, which is SiT's too.

    Attributes:
      channels, out_channels: of the images; the second half of twice the channels is the learned
        variance, which is not returned.
      patch: side of a patch.
      width: size of a token.
      depth: number of blocks.
      heads: attention heads of every block.
      num_classes: n; label n is no class. 0: there are no labels.
      shared: whether all blocks share one embedding of time and class, as in the original programs;
        in diffusers' each block has a copy, with which the last layer takes the first one's.
      eps: of the norm before the MLP; 1e-6 in the original, 1e-5 in diffusers.
    """

    channels: int
    out_channels: int
    patch: int
    width: int
    depth: int
    heads: int
    num_classes: int
    shared: bool = True
    eps: float = 1e-6

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.depth

    @nn.compact
    def compute(
        self,
        decode: bool,
        x: Float[Array, "b h w c"],
        time: Float[Array, " b"],
        label: Int[Array, " b"] | None,
    ) -> Result:
        """Return (the raw prediction, or None; features), float32.

        Args:
          decode: whether there is a prediction.
          x: [b, h, w, c], noisy; h and w divisible by the patch.
          time: [b], as the sinusoids take it.
          label: [b], 0..num_classes; None without classes.

        Raises:
          ValueError: if a shape does not fit the network.
        """
        self._check(x)
        grid = _Patches(self.width, self.patch, self.dtype, name="pos_embed")(x)
        # The original's sinusoids end one step short of the longest period; diffusers' do not.
        settings = (self.num_classes, 0.0 if self.shared else 1.0)
        condition: Any = (time, label)
        if self.shared:
            embed = _TimeAndClass(self.width, *settings, self.dtype, name="emb")
            condition = embed(time, label)
        tokens, features = grid.reshape(grid.shape[0], -1, self.width), []
        block: dict[str, Any] = {"heads": self.heads, "eps": self.eps}
        block["own"] = None if self.shared else settings
        for _, numbers in self.runs([0] * self.depth, decode):
            names = [f"transformer_blocks_{number}" for number in numbers]
            tokens = self.blocks(_Block, block, names, tokens, condition)
            if numbers[-1] in self.feature_blocks:
                features.append(tokens.reshape(grid.shape).astype(jnp.float32))
        return self._decode(tokens, condition, grid.shape) if decode else None, tuple(features)

    def _decode(
        self, tokens: Array, condition: Any, grid: tuple[int, ...]
    ) -> Float[Array, "b h w c"]:
        """Return the image that the last tokens mean."""
        if not self.shared:
            path = ("transformer_blocks_0", "norm1", "emb")
            kinds = {kind: flatten_dict(tree) for kind, tree in self.variables.items()}
            # With adapters and what is added to inputs, as in the block.
            first = {
                kind: unflatten_dict({at[3:]: leaf for at, leaf in it.items() if at[:3] == path})
                for kind, it in kinds.items()
            }
            embed = _TimeAndClass(self.width, self.num_classes, 1.0, self.dtype, parent=None)
            with inside(*path):
                condition = embed.apply(first, *condition)
        linear = {"bias_init": ZEROS, "kernel_init": ZEROS, "dtype": self.dtype}
        layer = Linear(2 * self.width, name="proj_out_1", **linear)
        shift, scale = jnp.split(layer(nn.silu(condition))[:, None], 2, axis=-1)
        last = Linear(self.patch**2 * self.out_channels, name="proj_out_2", **linear)
        image = einops.rearrange(
            last(modulated(tokens, shift, scale)),
            "b (h w) (dy dx c) -> b (h dy) (w dx) c",
            h=grid[1],
            dy=self.patch,
            dx=self.patch,
        )
        return image[..., : self.channels].astype(jnp.float32)

    def _check(self, x: Array) -> None:
        height, width, channels = x.shape[1:]
        if height % self.patch or width % self.patch or channels != self.channels:
            raise Refused(
                f"images of {height} x {width} with {channels} channels, expected "
                f"sides divisible by {self.patch} and {self.channels} channels; choose another "
                "resolution."
            )
