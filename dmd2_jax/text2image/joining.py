"""How a pipeline makes one condition of what its text encoders say.

| pipeline  | prompt_embeds                                                  | pooled          |
|-----------|----------------------------------------------------------------|-----------------|
| SD 1, 2   | the last hidden state after its final norm                     | -               |
| SDXL      | both encoders' last hidden state but one, beside each other    | the second's    |
| SD 3, 3.5 | SDXL's, with zeros up to T5's width; then T5's tokens or zeros | both, projected |
| FLUX.1    | T5's tokens                                                    | CLIP's          |
| Z-Image   | a language model's states, with a prompt_mask (llm.py)         | -               |
| Qwen-I.   | the same                                                       | -               |
| FLUX.2    | those of three layers, beside each other, of filling too       | -               |

Source: Podell et al. 2023 (2307.01952), sections 2.1 and 2.2; Esser et al. 2024 (2403.03206),
  section 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from dmd2_jax.families.published.folder import read_component_config
from dmd2_jax.families.published.pipeline import LANGUAGE_MODELS, T5_TOKENS, PipelineIndex
from dmd2_jax.text2image.llm import LlmJoin
from dmd2_jax.typing import Array

__all__ = ["Join", "StableDiffusionJoin", "join_of"]


class Join(Protocol):
    """Features of the encoders, in their order -> the condition; hashable."""

    def __call__(self, features: Sequence[Any]) -> dict[str, Array]:
        """Return prompt_embeds [n, t, d] and, where the network takes it, more."""


class StableDiffusionJoin(NamedTuple):
    """That of SD 1.x, SD 2.x and SDXL."""

    def __call__(self, features: Sequence[Any]) -> dict[str, Array]:
        """Return the condition."""
        if len(features) == 1:
            return {"prompt_embeds": features[0].last_hidden_state}
        return {"prompt_embeds": _beside(features), "pooled": features[-1].text_embeds}


class SD3Join(NamedTuple):
    """That of SD 3 and 3.5.

    Attributes:
      width: of a token, where there is no T5.
      tokens: of T5's part.
    """

    width: int
    tokens: int

    def __call__(self, features: Sequence[Any]) -> dict[str, Array]:
        """Return the condition; features of the two CLIPs and, unless it is absent, of T5."""
        clips, rest = _beside(features[:2]), features[2:]
        t5 = rest[0] if rest else jnp.zeros((clips.shape[0], self.tokens, self.width))
        padded = jnp.pad(clips, ((0, 0), (0, 0), (0, t5.shape[-1] - clips.shape[-1])))
        pooled = jnp.concatenate([each.text_embeds for each in features[:2]], axis=-1)
        return {"prompt_embeds": jnp.concatenate([padded, t5], axis=1), "pooled": pooled}


class FluxJoin(NamedTuple):
    """That of FLUX.1."""

    def __call__(self, features: Sequence[Any]) -> dict[str, Array]:
        """Return the condition; features of CLIP and of T5."""
        clip, t5 = features
        return {"prompt_embeds": t5, "pooled": clip.pooled}


def join_of(index: PipelineIndex) -> Join:
    """Return how a pipeline's encoders are joined."""
    if model := LANGUAGE_MODELS.get(index.class_name):
        return LlmJoin(model.states, model.drop, model.filled)
    if index.class_name == "FluxPipeline":
        return FluxJoin()
    if index.class_name == "StableDiffusion3Pipeline":
        width = read_component_config(index.part(index.network)).get("joint_attention_dim", 4096)
        return SD3Join(width, T5_TOKENS[index.class_name])
    return StableDiffusionJoin()


def _beside(features: Sequence[Any]) -> Array:
    return jnp.concatenate([each.hidden_states[-2] for each in features], axis=-1)
