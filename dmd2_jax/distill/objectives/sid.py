"""SiD, score identity distillation: the gradient passes through teacher and critic."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dmd2_jax.distill.objectives.distribution_matching import NOISING, DistributionMatching
from dmd2_jax.distill.objectives.noising import average_by_level
from dmd2_jax.distill.objectives.view import Pass, View
from dmd2_jax.losses.score_identity import score_identity_loss
from dmd2_jax.typing import Array

__all__ = ["Sid", "objective"]


@dataclasses.dataclass(frozen=True)
class Sid(DistributionMatching):
    """`score_identity_loss` of teacher and critic on the noised samples.

    It draws what distribution matching draws: beside that objective the two share noise, levels
    and the critic's pass, and their gradients are mixed by their weights.

    Attributes:
      alpha: see the loss.

    Source: SiD (arXiv 2404.04057); with the GAN beside it SiDA (arXiv 2410.14919); mixed with
      distribution matching as in Uni-Instruct (arXiv 2505.20755), without that paper's weights by
      the density ratio.
    """

    alpha: float = 1.0
    name: ClassVar[str] = "sid"

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The critic's x_0, differentiated in the samples."""
        return (Pass(NOISING, "x0"),)

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss; beside its metrics the squared distance of the scores by level."""
        loss, metrics = score_identity_loss(
            view.x_0,
            view.teacher_x0(NOISING, self.guidance, through=True),
            view.critic_x0(NOISING),
            alpha=self.alpha,
            normalizer_floor=self.normalizer_floor,
        )
        errors = metrics.pop("sid_score_errors")
        by_level = average_by_level(errors, draws[NOISING].level, view.schedule)
        return loss, metrics | {"sid_score_error_by_level": by_level}


def objective(
    guidance: float | None,
    dm_range: tuple[float, float],
    dm_times: str,
    normalizer_floor: float,
) -> Sid:
    """Make it with what `config.distill` says of distribution matching."""
    return Sid(guidance=guidance, range=dm_range, times=dm_times, normalizer_floor=normalizer_floor)
