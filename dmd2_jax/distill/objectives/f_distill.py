"""f-distill: distribution matching by another divergence than the reverse Kullback-Leibler's."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.distill.objectives.contract import Setting
from dmd2_jax.distill.objectives.distribution_matching import NOISING, DistributionMatching
from dmd2_jax.distill.objectives.view import Pass, View
from dmd2_jax.typing import Array, Float

__all__ = ["WEIGHTS", "FDistill", "objective"]

WEIGHTS: dict[str, Callable[[Array], Array]] = {
    "reverse_kl": jnp.ones_like,
    "softened_reverse_kl": lambda r: 1.0 / (1.0 + r),
    "jensen_shannon": lambda r: r / (1.0 + r),
    "squared_hellinger": jnp.sqrt,
    "forward_kl": lambda r: r,
}
"""h(r) = r^2 f''(r) of each divergence, up to a factor; from mode seeking to mode covering."""


@dataclasses.dataclass(frozen=True)
class FDistill(DistributionMatching):
    """Distribution matching whose gradient each sample has times h(r).

        h(r) = r^2 f''(r),   r = p_data(x_t) / p_student(x_t) = exp(D(x_t)), clipped

    D is the logit of the discriminator at the noising of distribution matching, without a
    gradient; it is the log ratio where the GAN's loss is softplus.

    Attributes:
      divergence: of `WEIGHTS`; "reverse_kl" is distribution matching itself.
      ratio_range: (low, high), what r is clipped to.
      normalized: divide h by its mean over the batch, so that the gradient keeps its size.

    Source: f-distill (arXiv 2502.15681) theorem 1 and table 1.
    """

    divergence: str = "forward_kl"
    ratio_range: tuple[float, float] = (0.1, 20.0)
    normalized: bool = True
    name: ClassVar[str] = "f_distill"
    needs_discriminator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.divergence not in WEIGHTS:
            raise Refused(
                f"divergence={self.divergence!r}, expected one of {list(WEIGHTS)}; choose one."
            )
        low, high = self.ratio_range
        if not 0 < low < high:
            raise Refused(
                f"ratio_range={self.ratio_range}, expected (low, high) with 0 < low < high; try "
                "(0.1, 20.0)."
            )

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The critic's x_0, and what the discriminator reads; nothing is differentiated."""
        return (*super().passes, Pass(NOISING, "features", frozen=True))

    def check(self, setting: Setting) -> None:
        """Refuse plain distribution matching beside it, and logits that are no log ratio."""
        names = [one.name for one in setting.objectives]
        if DistributionMatching.name in names:
            raise Refused(
                f"objectives {names} have distribution matching twice, plain and with the weights "
                "of 'f_distill', expected one of them; set dm_weight=None."
            )
        if any(getattr(one, "loss", "softplus") != "softplus" for one in setting.objectives):
            raise Refused(
                "'f_distill' takes the discriminator's logit as log p_data / p_student, which the "
                "hinge loss does not make of it; set gan_loss='softplus'."
            )
        if self.normalized and setting.microbatches > 1:
            raise Refused(
                f"'f_distill' divides its weights by their mean over the batch, and microbatches="
                f"{setting.microbatches} show it a part alone; set microbatches=1, or "
                "normalized=False in the objective."
            )

    def sample_weight(self, view: View) -> tuple[Float[Array, " b"], dict[str, Any]]:
        """Return h(r) of each sample."""
        (logits,) = view.logits(NOISING)
        low, high = self.ratio_range
        r = jnp.clip(jnp.exp(jax.lax.stop_gradient(logits)), low, high)
        h = WEIGHTS[self.divergence](r)
        if self.normalized:
            h = h / jnp.mean(h)
        # Of normalised weights 1 where all weigh alike, n where one of n does alone.
        square = jnp.mean(jnp.square(h))
        return h, {"f_distill_ratio": jnp.mean(r), "f_distill_weight_square": square}


def objective(
    guidance: float | None,
    dm_range: tuple[float, float],
    dm_times: str,
    normalizer_floor: float,
) -> FDistill:
    """Make it with what `config.distill` says of distribution matching."""
    return FDistill(
        guidance=guidance, range=dm_range, times=dm_times, normalizer_floor=normalizer_floor
    )
