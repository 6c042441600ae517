"""DP-DMD: the first of several steps repeats the teacher's sample, the others match."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from dmd2_jax.config.refused import Refused
from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.diffusion.samplers import ddim, sampling_times
from dmd2_jax.distill.objectives.contract import Objective, Setting
from dmd2_jax.distill.objectives.noising import Directions
from dmd2_jax.distill.objectives.view import View
from dmd2_jax.losses.regression import Distance, regression_loss, squared_error
from dmd2_jax.typing import Array

__all__ = ["FirstStep", "objective"]

NOISE = "first_step"


@dataclasses.dataclass(frozen=True)
class FirstStep(Objective):
    """`regression_loss` of the student's first step on a short solve of the teacher's ODE.

        loss = mean d(x_0(noise), y),   y = DDIM of the teacher in `solver_steps` from the noise

    With distribution matching on the later steps alone (first_trained_step=1) the first keeps
    what the noise says, and with it the teacher's diversity.

    Attributes:
      solver_steps: n; the turn makes n network calls more (2 n of a guided teacher), and no pairs
        have to be made before.
      guidance: w of the teacher's u + w (c - u); None = conditional teacher.
      distance: of two samples.

    Source: DP-DMD (arXiv 2602.03139). There a student goes from step to step by its ODE, and the
      target is where the teacher's is at the second time; ours is noised anew between steps, so
      that its target is the solution's end.
    """

    solver_steps: int = 4
    guidance: float | None = None
    distance: Distance = squared_error
    name: ClassVar[str] = "first_step"
    player: ClassVar[str] = "generator"

    @property
    def draws(self) -> Mapping[str, Directions]:
        """The noise that student and teacher begin with."""
        return {NOISE: Directions()}

    def check(self, setting: Setting) -> None:
        """Refuse a student of one step, and losses on the first of several."""
        if self.solver_steps < 1:
            raise Refused(
                f"'first_step' has solver_steps={self.solver_steps}, expected at least 1; try 4."
            )
        if setting.student_steps < 2:
            raise Refused(
                "'first_step' keeps the first of several steps, and the student has one, expected "
                "several student_times; or use regression_weight."
            )
        if setting.first_trained_step < 1:
            raise Refused(
                "'first_step' trains the first step by regression, and first_trained_step=0 trains "
                "it by distribution matching too, expected one of them; set first_trained_step=1."
            )

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss and its metric."""
        noise, schedule = draws[NOISE], view.teacher.denoiser.schedule
        y = ddim(
            guided_x0(view.teacher.denoiser, self.guidance),
            view.teacher.params,
            noise,
            view.cond,
            schedule=schedule,
            times=sampling_times(schedule, self.solver_steps),
        )
        loss, _ = regression_loss(
            view.from_noise(noise, view.cond), jax.lax.stop_gradient(y), distance=self.distance
        )
        return loss, {"first_step_loss": loss}


def objective(guidance: float | None) -> FirstStep:
    """Make it with the guidance of `config.distill`."""
    return FirstStep(guidance=guidance)
