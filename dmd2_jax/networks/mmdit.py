"""Transformers in which the tokens of an image and of a prompt attend to each other.

The parts that SD 3, FLUX.1 and Qwen-Image share, named as the published weights of the first two
name them: `net_0` here is `net.0` there. The order of the two sequences in the attention is
[prompt, image].

Source: Esser et al. 2024 (2403.03206), section 4; adaptive norms: Peebles and Xie 2022
  (2212.09748), section 3.2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.networks.attention import attention
from dmd2_jax.networks.layers import Linear
from dmd2_jax.networks.rms_norm import RmsNorm
from dmd2_jax.networks.time_embedding import TimestepEmbedding, sinusoids
from dmd2_jax.typing import Array, DType, Float, Int

__all__ = [
    "ConditionEmbedding",
    "JointAttention",
    "JointBlock",
    "Mlp",
    "Modulation",
    "modulated",
    "rotary_tables",
    "rotated",
]

_EPS = 1e-6
_SINUSOIDS = 256

Rotary = tuple[Array, Array] | None


def modulated(
    x: Float[Array, "b n c"],
    shift: Float[Array, "b 1 c"],
    scale: Float[Array, "b 1 c"],
    eps: float = _EPS,
) -> Float[Array, "b n c"]:
    """Return LN(x) (1 + scale) + shift; LN has no weights, and is float32."""
    wide = x.astype(jnp.float32)
    wide -= wide.mean(-1, keepdims=True)
    root = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return (wide * root).astype(x.dtype) * (1 + scale) + shift


class Modulation(nn.Module):
    """The condition's shifts, scales and gates of one block: silu, then a linear map.

    Attributes:
      chunks: their number.
      features: size of each.
      dtype: type of the computation.
      use_bias: whether the map has a bias.
    """

    chunks: int
    features: int
    dtype: DType = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, condition: Float[Array, "b d"]) -> tuple[Array, ...]:
        """Return `chunks` arrays [b, 1, features], in the order of the weights."""
        size, settings = self.chunks * self.features, {"use_bias": self.use_bias}
        layer = Linear(size, dtype=self.dtype, name="linear", **settings)
        return tuple(jnp.split(layer(nn.silu(condition))[:, None], self.chunks, axis=-1))


class _GeluLayer(nn.Module):
    features: int
    dtype: DType

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        """Return the activations."""
        return nn.gelu(Linear(self.features, dtype=self.dtype, name="proj")(x), approximate=True)


class Mlp(nn.Module):
    """A layer of four times the width with the tanh form of gelu, and back.

    Attributes:
      dtype: type of the computation.
    """

    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Apply the layers to each token."""
        width = x.shape[-1]
        h = _GeluLayer(4 * width, self.dtype, name="net_0")(x)
        return Linear(width, dtype=self.dtype, name="net_2")(h)


class JointAttention(nn.Module):
    """Attention of an image's tokens, with or without those of a prompt in the same softmax.

    Attributes:
      heads: their number; divides the width.
      qk_norm: whether queries and keys are normalised by their root mean square, a head each.
      writes: which sequences get an output map: "image", "both" or, where the caller has a map of
        its own, "none".
      dtype: type of the computation; norms, rotation and softmax are float32.
      use_bias: whether the maps have biases.
      eps: of the norms.
    """

    heads: int
    qk_norm: bool
    writes: str = "both"
    dtype: DType = jnp.float32
    use_bias: bool = True
    eps: float = _EPS

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b m c"] | None = None,
        rotary: Rotary = None,
        lengths: Int[Array, " b"] | None = None,
    ) -> tuple[Array, Array | None]:
        """Return what the image's and the prompt's tokens read; None where nobody writes it.

        Args:
          x: of the image.
          context: of the prompt.
          rotary: from `rotary_tables`, of the tokens [prompt, image].
          lengths: how many tokens of each prompt, the first ones, are read; None: all.
        """
        width = x.shape[-1]

        def linear(name: str) -> Linear:
            return Linear(width, use_bias=self.use_bias, dtype=self.dtype, name=name)

        def project(tokens: Array, names: tuple[str, str, str], norms: tuple[str, str]) -> list:
            parts = []
            for name, norm in zip(names, (*norms, ""), strict=True):
                heads = linear(name)(tokens).reshape(*tokens.shape[:2], self.heads, -1)
                normed = self.qk_norm and norm
                parts.append(RmsNorm(self.eps, name=norm)(heads) if normed else heads)
            return parts

        parts = project(x, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        if context is not None:
            names = ("add_q_proj", "add_k_proj", "add_v_proj")
            added = project(context, names, ("norm_added_q", "norm_added_k"))
            both = zip(added, parts, strict=True)
            parts = [jnp.concatenate(pair, axis=1) for pair in both]
        query, key, value = parts
        if rotary is not None:
            query, key = rotated(query, *rotary), rotated(key, *rotary)
        before = 0 if context is None else context.shape[1]
        if lengths is not None:  # what is read comes first: the image, then the prompt's tokens
            key, value = (jnp.roll(tokens, -before, axis=1) for tokens in (key, value))
            lengths = x.shape[1] + lengths
        read = attention(query, key, value, lengths)
        read = read.reshape(*read.shape[:2], width)
        own, other = read[:, before:], read[:, :before]
        if self.writes != "none":
            own = linear("to_out_0")(own)
        if context is None or self.writes != "both":
            return own, None
        return own, linear("to_add_out")(other)


class JointBlock(nn.Module):
    """Joint attention and a feed-forward layer for each of the two sequences, gated.

    Attributes:
      heads, qk_norm: of the attention.
      dual: whether the image's tokens have an attention of their own beside it (SD 3.5 medium).
      last: whether the prompt's tokens end here: they are read, and not written.
      dtype: type of the computation.
    """

    heads: int
    qk_norm: bool
    dual: bool = False
    last: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: tuple[Array, Array],
        condition: Float[Array, "b d"],
        rotary: Rotary = None,
        lengths: Int[Array, " b"] | None = None,
    ) -> tuple[Array, Array]:
        """Apply the block to (prompt, image) tokens under the embedded condition.

        Args:
          tokens: of both.
          condition: the embedded time, and what goes with it.
          rotary, lengths: as in `JointAttention`.
        """
        context, x = tokens
        width = x.shape[-1]

        def modulation(name: str, chunks: int) -> tuple[Array, ...]:
            return Modulation(chunks, width, self.dtype, name=name)(condition)

        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, *second = modulation(
            "norm1", 9 if self.dual else 6
        )
        gates: list[Array] = []
        if self.last:  # the published order is the other one here
            scale_in, shift_in = modulation("norm1_context", 2)
        else:
            shift_in, scale_in, *gates = modulation("norm1_context", 6)
        attend = JointAttention(
            self.heads,
            self.qk_norm,
            "image" if self.last else "both",
            self.dtype,
            name="attn",
        )
        read, read_in = attend(
            modulated(x, shift, scale), modulated(context, shift_in, scale_in), rotary, lengths
        )
        before = x
        x = x + gate * read
        if self.dual:
            attend = JointAttention(self.heads, self.qk_norm, "image", self.dtype, name="attn2")
            x = x + second[2] * attend(modulated(before, second[0], second[1]))[0]
        x = x + gate_mlp * Mlp(self.dtype, name="ff")(modulated(x, shift_mlp, scale_mlp))
        if read_in is None:
            return context, x
        gate_in, shift_mlp, scale_mlp, gate_mlp = gates
        context = context + gate_in * read_in
        inner = Mlp(self.dtype, name="ff_context")(modulated(context, shift_mlp, scale_mlp))
        return context + gate_mlp * inner, x


class ConditionEmbedding(nn.Module):
    """The sum of the embedded time and, where the network takes them, pooled prompt and guidance.

    Attributes:
      features: size of the embedding.
      guidance: whether the network takes a guidance scale.
      dtype: type of the computation; the sinusoids are float32.
    """

    features: int
    guidance: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        time: Float[Array, " b"],
        pooled: Float[Array, "b p"] | None = None,
        guidance: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b d"]:
        """Return the embedding.

        Args:
          time: 0 to 1000, 1000 is noise.
          pooled: the prompt as one vector, of a network that takes it.
          guidance: the scale times 1000.
        """

        def embed(name: str, values: Array) -> Array:
            return TimestepEmbedding(self.features, dtype=self.dtype, name=name)(values)

        def number(values: Array) -> Array:
            return sinusoids(values, _SINUSOIDS, cosine_first=True, freq_shift=0)

        embedding = embed("timestep_embedder", number(time))
        if self.guidance and guidance is not None:
            embedding += embed("guidance_embedder", number(guidance))
        return embedding if pooled is None else embedding + embed("text_embedder", pooled)


def rotary_tables(
    positions: np.ndarray, sizes: tuple[int, ...], theta: float = 10000.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines and sines by which neighbouring pairs of a head's numbers are turned.

    Of axis a, pair i: the angle positions[:, a] theta^(-2 i / sizes[a]), in float64.

    Args:
      positions: [n, axes] of the tokens.
      sizes: how many of a head's numbers each axis turns, even.
      theta: the longest period over 2 pi.

    Returns:
      Two arrays [n, sum(sizes) / 2], float32.

    Source: Su et al. 2021 (2104.09864), equation 15.
    """
    angles = [
        positions[:, axis, None].astype(np.float64) * theta ** -(np.arange(0, size, 2) / size)
        for axis, size in enumerate(sizes)
    ]
    both = np.concatenate(angles, axis=-1)
    return np.cos(both).astype(np.float32), np.sin(both).astype(np.float32)


def rotated(
    x: Float[Array, "b n heads d"],
    cosines: Float[Array, "*b n e"],
    sines: Float[Array, "*b n e"],
) -> Float[Array, "b n heads d"]:
    """Turn neighbouring pairs of each head's numbers, in float32.

    Args:
      x: queries or keys.
      cosines, sines: of the angles, e = d / 2; of all samples, or of each.

    Returns:
      As `x`, in its dtype.

    Source: Su et al. 2021 (2104.09864), equation 15.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    cosines, sines = cosines[..., None, :], sines[..., None, :]
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.stack(turned, axis=-1).reshape(x.shape).astype(x.dtype)
