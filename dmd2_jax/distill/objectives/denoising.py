"""Denoising score matching on the student's samples: what makes the critic their score."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dmd2_jax.config.times import UNIFORM
from dmd2_jax.distill.objectives.contract import Objective
from dmd2_jax.distill.objectives.noising import Levels, average_by_level
from dmd2_jax.distill.objectives.view import Pass, View
from dmd2_jax.losses.denoising import denoising_loss, denoising_weight
from dmd2_jax.typing import Array

NOISING = "denoising"


@dataclasses.dataclass(frozen=True)
class Denoising(Objective):
    """`denoising_loss` of the critic at all levels.

    Attributes:
      kind: the weight of each level, "edm", "eps", "x0" or "flow" (see losses.denoising).
      sigma_data: standard deviation of the data, for "edm".
      times: how often each level is drawn, see `Levels`.

    Source: DMD2 (arXiv 2405.14867) eq. 4.
    """

    kind: str = "edm"
    sigma_data: float = 0.5
    times: str = UNIFORM
    name: ClassVar[str] = "denoising"
    player: ClassVar[str] = "critic"
    trains_critic: ClassVar[bool] = True

    @property
    def draws(self) -> Mapping[str, Levels]:
        """The noising "denoising"."""
        return {NOISING: Levels(times=self.times)}

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The critic's x_0."""
        return (Pass(NOISING, "x0"),)

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss; beside its metrics the error by level."""
        x_0_critic, (_, t) = view.critic_x0(NOISING), view.noised(NOISING)
        schedule = view.schedule
        weight = denoising_weight(
            self.kind, schedule.alpha(t), schedule.sigma(t), sigma_data=self.sigma_data
        )
        loss, metrics = denoising_loss(x_0_critic, view.x_0, weight=weight)
        errors = metrics.pop("denoising_errors")
        by_level = average_by_level(errors, draws[NOISING].level, schedule)
        return loss, metrics | {"critic_error_by_level": by_level}
