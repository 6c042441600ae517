"""Qwen's language models as encoders of prompts: the states of all layers, and no next token.

Qwen3 normalises queries and keys; Qwen2.5-VL, of which this is the part that reads text, has
biases there. Its places have three axes, which are equal for text: turning by them is turning by
one. Modules are called as the published weights of transformers' Qwen3Model call them, with `_0`
for `.0`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.layers import Embedding, Linear
from dmd2_jax.networks.published_config import check_kinds
from dmd2_jax.networks.rms_norm import RmsNorm
from dmd2_jax.typing import Array, DType, Float, Int

__all__ = [
    "LlmFeatures",
    "Qwen",
    "example_qwen_inputs",
    "qwen25_vl_from_config",
    "qwen_from_config",
]

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
}
_QWEN25_VL: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
}
# What would make it another network: the values that it is built for.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (False,),
}
_THETA, _QWEN25_VL_THETA = 10000.0, 1e6  # where a config says none
_FULL = "full_attention"

Rotary = tuple[np.ndarray, np.ndarray]


class LlmFeatures(NamedTuple):
    """What a language model says of prompts.

    Attributes:
      hidden_states: of the embedding, of each layer but the last, and of the last one after the
        norm; float32 [b, n, d].
      mask: where there is a token of the prompt, and not filling.
    """

    hidden_states: tuple[Array, ...]
    mask: Bool[Array, "b n"]


def _turned(x: Float[Array, "b n heads d"], rotary: Rotary) -> Float[Array, "b n heads d"]:
    """Turn the first half of each head's numbers with the second one."""
    cosines, sines = (table[:, None] for table in rotary)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class _Attention(nn.Module):
    model: "Qwen"

    @nn.compact
    def __call__(self, x: Array, rotary: Rotary, mask: Array) -> Array:
        """Return what each token reads of itself and of those before it."""
        m = self.model

        def project(name: str, heads: int) -> Array:
            layer = Linear(heads * m.head_size, use_bias=m.bias, dtype=m.dtype, name=f"{name}_proj")
            made = layer(x).reshape(*x.shape[:2], heads, -1)
            normed = m.qk_norm and name != "v"
            return RmsNorm(m.eps, name=f"{name}_norm")(made) if normed else made

        query, key = project("q", m.heads), project("k", m.key_heads)
        read = jax.nn.dot_product_attention(
            _turned(query, rotary),
            _turned(key, rotary),
            project("v", m.key_heads),
            mask=mask[:, None, None],
            is_causal=True,
            implementation="xla",
        )
        layer = Linear(x.shape[-1], use_bias=False, dtype=m.dtype, name="o_proj")
        return layer(read.reshape(*x.shape[:2], -1))


class _Mlp(nn.Module):
    model: "Qwen"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return (silu(x A) (x B)) C of each token."""

        def linear(name: str, features: int) -> Linear:
            return Linear(features, use_bias=False, dtype=self.model.dtype, name=name)

        gate = nn.silu(linear("gate_proj", self.model.hidden)(x))
        return linear("down_proj", x.shape[-1])(gate * linear("up_proj", self.model.hidden)(x))


class _Layer(nn.Module):
    model: "Qwen"

    @nn.compact
    def __call__(self, x: Array, rotary: Rotary, mask: Array) -> Array:
        """Return the tokens after the layer."""
        attend = _Attention(self.model, name="self_attn")
        x = x + attend(RmsNorm(self.model.eps, name="input_layernorm")(x), rotary, mask)
        inner = RmsNorm(self.model.eps, name="post_attention_layernorm")(x)
        return x + _Mlp(self.model, name="mlp")(inner)


class Qwen(nn.Module):
    """The decoder of Qwen3, or the one of Qwen2.5-VL.

    Attributes:
      vocabulary: number of tokens that it knows.
      width: size of a token.
      layers, heads, key_heads, head_size, hidden: of the layers; key_heads divides heads.
      theta: the longest period of the turning over 2 pi.
      eps: of the norms.
      qk_norm: whether queries and keys are normalised, a head each (Qwen3).
      bias: whether queries, keys and values have biases (Qwen2.5).
      dtype: type of the computation; norms, rotation and softmax are float32.

    Source: Yang et al. 2025 (2505.09388), section 2; Bai et al. 2025 (2502.13923), section 2.1; the
      weights as transformers reads them.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    hidden: int
    theta: float = _THETA
    eps: float = 1e-6
    qk_norm: bool = True
    bias: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b n"]) -> LlmFeatures:
        """Return the states of prompts.

        Args:
          ids: their tokens, and behind them filling: ~p, below 0, of a token p that fills up.
        """
        mask = ids >= 0
        table = Embedding(self.vocabulary, self.width, dtype=self.dtype, name="embed_tokens")
        x = table(jnp.where(mask, ids, ~ids))
        settings, rotary = self.clone(parent=None, name=None), self._rotary(ids.shape[1])
        states = [x]
        for number in range(self.layers):
            x = _Layer(settings, name=f"layers_{number}")(x, rotary, mask)
            states.append(x)
        states[-1] = RmsNorm(self.eps, name="norm")(x)
        return LlmFeatures(tuple(state.astype(jnp.float32) for state in states), mask)

    def _rotary(self, tokens: int) -> Rotary:
        """Return cosines and sines [n, d / 2] of the places, in float32 as the field has them."""
        exponents = np.arange(0, self.head_size, 2, dtype=np.float32) / np.float32(self.head_size)
        frequencies = np.float32(1) / (np.float32(self.theta) ** exponents)
        angles = np.arange(tokens, dtype=np.float32)[:, None] * frequencies
        return np.cos(angles), np.sin(angles)


def qwen_from_config(config: Mapping[str, Any], *, dtype: DType = jnp.float32) -> Qwen:
    """Build the decoder that a config.json of a Qwen3Model or Qwen3ForCausalLM describes.

    Args:
      config: the file's contents; absent settings have transformers' defaults.
      dtype: type of the computation.

    Raises:
      ValueError: if the config asks for what this network does not do.
    """
    return _decoder(config, "Qwen3Model", qk_norm=True, bias=False, dtype=dtype)


def qwen25_vl_from_config(config: Mapping[str, Any], *, dtype: DType = jnp.float32) -> Qwen:
    """Build the part that reads text of what a Qwen2_5_VLForConditionalGeneration's file describes.

    Args:
      config: the contents of config.json; absent settings have transformers' defaults.
      dtype: type of the computation.

    Raises:
      ValueError: if the config asks for what this network does not do.
    """
    own = config.get("text_config") or {}  # in older files everything is at the top
    c = {**_QWEN25_VL, **config, **(own if isinstance(own, Mapping) else {})}
    check_kinds(c, _QWEN25_VL, "Qwen2.5-VL")
    width, heads = c["hidden_size"], max(c["num_attention_heads"], 1)
    if width % heads:
        raise Refused(
            f"config of a Qwen2.5-VL has hidden_size={width} with {heads} heads, expected a "
            "multiple of them; correct config.json."
        )
    # Beside what is read here it says how the axes of a place share a head: no matter for text.
    rope = (c.pop("rope_scaling", None) or {}) | (c.get("rope_parameters") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    c["rope_parameters"] = {
        "rope_theta": rope.get("rope_theta", c.get("rope_theta", _QWEN25_VL_THETA)),
        "rope_type": "default" if kind == "mrope" else kind,
    }
    c["head_dim"] = width // heads
    return _decoder(c, "Qwen2.5-VL", qk_norm=False, bias=True, dtype=dtype)


def _decoder(
    config: Mapping[str, Any], name: str, *, qk_norm: bool, bias: bool, dtype: DType
) -> Qwen:
    # What else such a file holds says how text is written, how dropout trains, or who wrote it.
    check_kinds(config, _DEFAULTS, name)
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", _THETA))
    odd = {k: config[k] for k, known in _SUPPORTED.items() if config.get(k, known[0]) not in known}
    odd |= {"rope_type": rope["rope_type"]} if rope.get("rope_type", "default") != "default" else {}
    odd |= {"layer_types": it} if set(it := config.get("layer_types") or ()) - {_FULL} else {}
    c = _DEFAULTS | dict(config)
    if odd or c["num_attention_heads"] % max(c["num_key_value_heads"], 1):
        said = ", ".join(f"{key}={value!r:.60}" for key, value in sorted(odd.items()))
        heads = f"{c['num_attention_heads']} heads of {c['num_key_value_heads']} keys"
        raise Refused(
            f"config of a {name} asks for what is not built here: {said or heads}, expected "
            "full attention without other biases or scaled places, heads divided by those of the "
            "keys; take the text encoder of the pipeline's own release."
        )
    return Qwen(
        vocabulary=c["vocab_size"],
        width=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        key_heads=c["num_key_value_heads"],
        head_size=c["head_dim"],
        hidden=c["intermediate_size"],
        theta=float(theta),
        eps=c["rms_norm_eps"],
        qk_norm=qk_norm,
        bias=bias,
        dtype=dtype,
    )


def example_qwen_inputs(model: Qwen) -> tuple[jax.ShapeDtypeStruct]:
    """Return the shortest prompt."""
    return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)
