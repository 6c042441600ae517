"""The guidance of Qwen-Image's pipeline, which diffusers calls `true_cfg_scale`."""

import jax.numpy as jnp

from dmd2_jax.diffusion.guidance import Scale, guide
from dmd2_jax.networks.packing import pack, unpack
from dmd2_jax.typing import Array, Float

__all__ = ["true_cfg"]

_LEAST_NORM = 1e-12


def true_cfg(
    x_0_cond: Float[Array, "b h w c"],
    x_0_uncond: Float[Array, "b h w c"],
    w: Scale,
    x_t: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """Extrapolate, then give each token's flow the length that it has under the prompt.

    v = v_u + w (v_c - v_u), then v |v_c| / |v| over the numbers of each patch; of x_0 instead,
    t v = x_t - x_0, in which t is in both lengths.

    Args:
      x_0_cond, x_0_uncond: of the prompt, and of what guidance goes away from.
      w: guidance scale, one number or one a sample [b]; 1 is x_0_cond itself.
      x_t: the noisy latents.

    Returns:
      Guided x_0.

    Raises:
      ValueError: if w is neither one number nor one a sample.

    Source: QwenImagePipeline as diffusers has it; u + w (c - u): Ho & Salimans 2022 (2207.12598).
    """
    flow = pack(x_t - guide(x_0_cond, x_0_uncond, w))
    length, own = (_length(patches) for patches in (flow, pack(x_t - x_0_cond)))
    return x_t - unpack(flow * (own / jnp.maximum(length, _LEAST_NORM)))


def _length(patches: Float[Array, "b h w d"]) -> Float[Array, "b h w 1"]:
    return jnp.sqrt(jnp.square(patches).sum(-1, keepdims=True))
