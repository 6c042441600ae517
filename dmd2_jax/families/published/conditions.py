"""What published text-to-image networks are conditioned on: the names of the arrays."""

from collections.abc import Callable, Collection, Mapping

import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Array

__all__ = ["NEGATIVES", "Condition", "check_condition", "null_conditions", "with_negative"]

Condition = Mapping[str, Array]
"""Arrays with a leading batch axis, by their names; families/stable_diffusion has a table."""

NEGATIVES = {name: f"negative_{name}" for name in ("prompt_embeds", "pooled", "prompt_mask")}
"""Part of a condition -> the name of what guidance goes away from in its place."""


def with_negative(cond: Condition, null: Condition) -> dict[str, Array]:
    """Give every sample of a batch one negative prompt, which may be the empty one.

    Args:
      cond: of the batch.
      null: prompt_embeds [1, n, d], and pooled [1, p] or prompt_mask [1, n] where the network takes
        it, as a text encoder returns them.

    Returns:
      The condition with the `negative_` parts.
    """
    negative = {
        name: jnp.broadcast_to(null[source], cond[source].shape)
        for source, name in NEGATIVES.items()
        if source in null
    }
    return dict(cond) | negative


def check_condition(
    cond: Condition | None, needed: Collection[str], optional: Collection[str] = ()
) -> None:
    """Refuse a condition with missing, unknown or superfluous parts.

    Args:
      cond: the condition.
      needed: names of its parts.
      optional: names of parts that it may have; the negatives of those needed may be there always.
    """
    known = {*needed, *optional, *(NEGATIVES[name] for name in needed if name in NEGATIVES)}
    got = set(cond) if isinstance(cond, Mapping) else None
    if got is None or not set(needed) <= got <= known:
        raise Refused(
            f"cond is {type(cond).__name__ if got is None else sorted(got)}, expected a dict of "
            f"{sorted(needed)} and at most {sorted(known - set(needed))} beside them; check that "
            "the prompts were encoded for this network."
        )


def null_conditions(
    needed: Collection[str],
    null: Condition,
    *,
    zeros: bool = False,
    optional: Collection[str] = (),
) -> Callable[[Condition], dict[str, Array]]:
    """Make what turns conditions into unconditional ones: their own negatives, else `null`.

    Args:
      needed, optional: as in `check_condition`.
      null: of no prompt; {}: not known.
      zeros: whether zeros stand for no prompt where `null` is not known (SDXL).
    """

    def null_cond(cond: Condition) -> dict[str, Array]:
        check_condition(cond, needed, optional)
        if not zeros and "negative_prompt_embeds" not in cond and not null:
            raise Refused(
                f"cond has {sorted(cond)}, expected negative_prompt_embeds among them: guidance of "
                "this network needs the empty prompt's embedding; add it, [b, n, d] like "
                "prompt_embeds, or set the guidance to None."
            )
        unmasked = "prompt_mask" in cond and "negative_prompt_mask" not in cond
        if "negative_prompt_embeds" in cond and unmasked:
            raise Refused(
                f"cond has {sorted(cond)}, expected negative_prompt_mask beside "
                "negative_prompt_embeds; add it, [b, n], 1 where there is a token."
            )
        twin = dict(cond)
        for name, negative in NEGATIVES.items():
            if negative in cond:
                twin[name] = cond[negative]
            elif name in cond:
                twin[name] = jnp.broadcast_to(null.get(name, 0.0), cond[name].shape)
        return twin

    return null_cond
