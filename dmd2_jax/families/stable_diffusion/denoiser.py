"""The U-Net as a Denoiser: its predictions as x_0, and the conditions that it takes."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.predictions import to_x0
from dmd2_jax.families.published.conditions import NEGATIVES, Condition
from dmd2_jax.families.published.scheduler import Diffusion
from dmd2_jax.families.stable_diffusion.unet import StableDiffusionUNet
from dmd2_jax.typing import Array, Params

__all__ = ["null_conditions", "unet_denoiser"]


def unet_denoiser(unet: StableDiffusionUNet, diffusion: Diffusion) -> Denoiser:
    """Wrap the U-Net; the conversion to x_0 is float32, from tables made in float64.

    The functions are jitted, so that a program which calls one several times traces and
    differentiates the network once for each batch size; XLA inlines the calls.
    """
    schedule, kind = diffusion
    sdxl = unet.added is not None

    def inputs(x_t: Array, t: Array, cond: Condition) -> tuple[Array, tuple]:
        _check_condition(cond, sdxl)
        t = jnp.broadcast_to(t, x_t.shape[:1])
        conditions = (cond["prompt_embeds"], cond.get("pooled"), cond.get("time_ids"))
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

    return Denoiser(x0, features, x0_and_features, schedule, null_conditions(sdxl, {}))


def null_conditions(sdxl: bool, null: Condition) -> Callable[[Condition], dict[str, Array]]:
    """Make what turns conditions into unconditional ones: their own negatives, else `null`."""

    def null_cond(cond: Condition) -> dict[str, Array]:
        _check_condition(cond, sdxl)
        if not sdxl and "negative_prompt_embeds" not in cond and not null:
            raise Refused(
                f"cond has {sorted(cond)}, expected negative_prompt_embeds among them: guidance of "
                "SD 1.x and 2.x needs the empty prompt's embedding; add it, [b, n, d] like "
                "prompt_embeds, or set the guidance to None."
            )
        twin = dict(cond)
        for name, negative in NEGATIVES.items():
            if negative in cond:
                twin[name] = cond[negative]
            elif name in cond:
                twin[name] = jnp.broadcast_to(null.get(name, 0.0), cond[name].shape)
        return twin

    return null_cond


def _check_condition(cond: Condition | None, sdxl: bool) -> None:
    """Refuse a condition with missing, unknown or superfluous parts."""
    needed = {"prompt_embeds", *(("pooled", "time_ids") if sdxl else ())}
    known = needed | {negative for name, negative in NEGATIVES.items() if name in needed}
    got = set(cond) if isinstance(cond, Mapping) else None
    if got is None or not needed <= got <= known:
        raise Refused(
            f"cond is {type(cond).__name__ if got is None else sorted(got)}, expected a dict of "
            f"{sorted(needed)} and at most {sorted(known - needed)} beside them; check that the "
            "prompts were encoded for this U-Net."
        )
