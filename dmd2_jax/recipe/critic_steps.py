"""A critic that is told the student's step: `config.distill.critic_knows_step`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.times import number_of_steps
from dmd2_jax.networks.step_embedding import STEPS, at_step, with_steps
from dmd2_jax.recipe.open import Family, student_times
from dmd2_jax.typing import Params

__all__ = ["critic_shapes", "critic_step", "given_steps", "same_steps"]


def critic_step(config: ConfigDict, family: Family) -> Callable[[Params, Any], Params] | None:
    """Return what makes a critic's parameters those of a step; None where it is not told.

    Raises:
      Refused: if there is one step alone, adapters are the critic, or the family does not say
        where the noise level is embedded.
    """
    if not config.distill.critic_knows_step:
        return None
    times = student_times(config, family.denoiser.schedule)
    if len(times) < 2:
        raise Refused(
            f"config.distill.critic_knows_step=True and student_times={times}, expected several "
            "steps, of which the critic can be told one; set it False."
        )
    if config.distill.lora_critic:
        raise Refused(
            "config.distill.critic_knows_step=True and lora_critic=True, expected one of them: the "
            "embedding of the steps is no low-rank adapter; set lora_critic=False."
        )
    if not _layer(family):
        raise Refused(
            f"config.distill.critic_knows_step=True and a family {type(family).__name__} without "
            "time_layer, expected the name of the layer that embeds the noise level; add it to "
            "the family."
        )
    return at_step


def given_steps(critic: Params, family: Family, steps: int) -> Params:
    """Return a critic's parameters with embeddings of the steps, where it has none yet."""
    return critic if STEPS in critic else with_steps(critic, _layer(family), steps)


def critic_shapes(shapes: Params, distill: Mapping[str, Any], family: Family) -> Params:
    """Return the shapes of a critic's parameters in the state of a run.

    Args:
      shapes: without embeddings of the steps.
      distill: `config.distill` of the run, also of an older release.
      family: the networks.
    """
    if not distill.get("critic_knows_step"):
        return shapes
    steps = number_of_steps(distill)
    return jax.eval_shape(lambda shapes: given_steps(shapes, family, steps), shapes)


def same_steps(critic: Params, config: ConfigDict | None, family: Family, place: str) -> Params:
    """Return another run's critic as a run takes it up: what it learned of the steps, or not.

    Args:
      critic: its parameters.
      config: of the run that begins; None: a critic that is told nothing.
      family: the networks.
      place: what the other run is called.

    Raises:
      Refused: if it was told of another number of steps.
    """
    if STEPS not in critic:
        return critic
    if config is None or not config.distill.critic_knows_step:
        return {key: value for key, value in critic.items() if key != STEPS}
    ours = len(student_times(config, family.denoiser.schedule))
    (theirs,) = {len(table) for table in critic[STEPS].values()}
    if theirs != ours:
        raise Refused(
            f"config.distill.start_from={place} is a run whose critic was told one of {theirs} "
            f"steps, expected {ours} as in the config; give it as many student_times."
        )
    return critic


def _layer(family: Family) -> str:
    return getattr(family, "time_layer", "")  # a family of the user's own may have none
