"""The U-Net as a Denoiser: its predictions as x_0, and the conditions that it takes."""

import jax
import jax.numpy as jnp

from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.predictions import to_x0
from dmd2_jax.families.published.conditions import (
    Condition,
    check_condition,
    null_conditions,
)
from dmd2_jax.families.published.scheduler import Diffusion
from dmd2_jax.families.stable_diffusion.unet import StableDiffusionUNet
from dmd2_jax.networks.guidance_embedding import scale_embedding
from dmd2_jax.typing import Array, Params

__all__ = ["needed_parts", "optional_parts", "unet_denoiser"]


def needed_parts(sdxl: bool) -> tuple[str, ...]:
    """Return the names of what a condition has."""
    return ("prompt_embeds", "pooled", "time_ids") if sdxl else ("prompt_embeds",)


def optional_parts(unet: StableDiffusionUNet) -> tuple[str, ...]:
    """Return the names of what a condition may have beside."""
    return ("guidance",) if unet.time_condition_dim else ()


def unet_denoiser(
    unet: StableDiffusionUNet, diffusion: Diffusion, guidance: float = 0.0
) -> Denoiser:
    """Wrap the U-Net; the conversion to x_0 is float32, from tables made in float64.

    The functions are jitted, so that a program which calls one several times traces and
    differentiates the network once for each batch size; XLA inlines the calls.

    Args:
      unet: the network.
      diffusion: what it was trained on.
      guidance: the scale of a U-Net that takes one, where a condition has none.
    """
    schedule, kind = diffusion
    sdxl = unet.added is not None
    needed, optional = needed_parts(sdxl), optional_parts(unet)

    def inputs(x_t: Array, t: Array, cond: Condition) -> tuple[Array, tuple]:
        check_condition(cond, needed, optional)
        t = jnp.broadcast_to(t, x_t.shape[:1])
        conditions = [cond["prompt_embeds"], cond.get("pooled"), cond.get("time_ids")]
        if unet.time_condition_dim:
            scale = cond.get("guidance", jnp.full(t.shape, guidance))
            conditions.append(scale_embedding(scale, unet.time_condition_dim))
        return t, (x_t, t.astype(jnp.float32), *conditions)

    def convert(raw: Array, x_t: Array, t: Array) -> Array:
        return to_x0(kind, raw, x_t, schedule.alpha(t), schedule.sigma(t))

    @jax.jit
    def x0(params: Params, x_t: Array, t: Array, cond: Condition) -> Array:
        t, arguments = inputs(x_t, t, cond)
        return convert(unet.apply(params, *arguments), x_t, t)

    @jax.jit
    def features(params: Params, x_t: Array, t: Array, cond: Condition) -> tuple[Array]:
        _, arguments = inputs(x_t, t, cond)
        return (unet.apply(params, *arguments, method="bottleneck"),)

    @jax.jit
    def x0_and_features(
        params: Params, x_t: Array, t: Array, cond: Condition
    ) -> tuple[Array, tuple[Array]]:
        t, arguments = inputs(x_t, t, cond)
        raw, bottleneck = unet.apply(params, *arguments, method="call_with_bottleneck")
        return convert(raw, x_t, t), (bottleneck,)

    null = null_conditions(needed, {}, zeros=sdxl, optional=optional)
    return Denoiser(x0, features, x0_and_features, schedule, null, gathers=True)
