"""Regression on the teacher's ODE pairs, of the original DMD."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dmd2_jax.distill.objectives.contract import Objective
from dmd2_jax.distill.objectives.view import View
from dmd2_jax.losses.regression import Distance, regression_loss, squared_error
from dmd2_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Regression(Objective):
    """`regression_loss` of the student's first step on the pairs' noise.

    Attributes:
      distance: of two samples.

    Source: DMD (arXiv 2311.18828) eq. 9.
    """

    weight: float = 0.25
    distance: Distance = squared_error
    name: ClassVar[str] = "regression"
    player: ClassVar[str] = "generator"
    needs_pairs: ClassVar[bool] = True

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss and its metric."""
        pairs = view.pairs
        from_noise = view.from_noise(pairs.noise, pairs.cond)
        return regression_loss(from_noise, pairs.x_0, distance=self.distance)
