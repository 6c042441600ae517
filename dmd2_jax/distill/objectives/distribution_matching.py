"""Distribution matching: the student's samples move from the critic's score to the teacher's."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from dmd2_jax.config.times import UNIFORM
from dmd2_jax.distill.objectives.contract import Objective
from dmd2_jax.distill.objectives.noising import Levels, average_by_level
from dmd2_jax.distill.objectives.view import Pass, View
from dmd2_jax.losses.distribution_matching import NORMALIZER_FLOOR, distribution_matching_loss
from dmd2_jax.runtime.summaries import Average, Norm
from dmd2_jax.typing import Array, Float

NOISING = "dm"


@dataclasses.dataclass(frozen=True)
class DistributionMatching(Objective):
    """`distribution_matching_loss` of teacher and critic on the noised samples.

    Attributes:
      guidance: w of the teacher's u + w (c - u); None = conditional teacher.
      range: the part of the schedule's levels that is drawn from, last level included.
      normalizer_floor: smallest normaliser of the gradient.
      times: how often each of these levels is drawn, see `Levels`.

    Source: DMD2 (arXiv 2405.14867) eq. 2.
    """

    guidance: float | None = None
    range: tuple[float, float] = (0.02, 0.98)
    normalizer_floor: float = NORMALIZER_FLOOR
    times: str = UNIFORM
    name: ClassVar[str] = "distribution_matching"
    player: ClassVar[str] = "generator"
    needs_critic: ClassVar[bool] = True

    @property
    def draws(self) -> Mapping[str, Levels]:
        """The noising "dm"."""
        return {NOISING: Levels(self.range, times=self.times)}

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The critic's x_0; nothing is differentiated through it."""
        return (Pass(NOISING, "x0", frozen=True),)

    def sample_weight(self, view: View) -> tuple[Float[Array, " b"] | None, dict[str, Any]]:
        """Return the weight of each sample's gradient, [b] or None for 1, and its metrics."""
        return None, {}

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss; beside its metrics the gradient's norm by level."""
        x_0_critic = view.critic_x0(NOISING)
        x_0_teacher = view.teacher_x0(NOISING, self.guidance)
        weight, found = self.sample_weight(view)
        loss, metrics = distribution_matching_loss(
            view.x_0,
            x_0_teacher,
            x_0_critic,
            weight=weight,
            normalizer_floor=self.normalizer_floor,
        )
        norms = metrics.pop("dm_grad_norms")
        hits = metrics["dm_floor_hits"].astype(jnp.float32)
        return loss, metrics | found | {
            "dm_grad_norm": Norm(metrics["dm_grad_norm"]),
            "dm_grad_norm_by_level": average_by_level(norms, draws[NOISING].level, view.schedule),
            "dm_floor_share": Average(hits, jnp.int32(norms.shape[0])),
        }
