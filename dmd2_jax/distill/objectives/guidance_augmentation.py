"""Decoupled DMD: guidance as an objective of its own, at noise levels of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.times import UNIFORM
from dmd2_jax.diffusion.guidance import both_x0
from dmd2_jax.distill.objectives.contract import Objective, Setting
from dmd2_jax.distill.objectives.noising import Levels, Noising, noised
from dmd2_jax.distill.objectives.view import View
from dmd2_jax.losses.distribution_matching import NORMALIZER_FLOOR, distribution_matching_loss
from dmd2_jax.runtime.summaries import Norm
from dmd2_jax.typing import Array, Int

__all__ = ["GuidanceAugmentation", "objective"]

NOISING = "guidance"


@dataclasses.dataclass(frozen=True)
class GuidanceAugmentation(Objective):
    """What guidance adds to distribution matching, apart from it.

        gradient = -(w - 1) (c - u) / mean |x - c|,   c and u the teacher's of x_t, with the
        condition and without

    With the noise of distribution matching the two gradients add up to that of a guided teacher
    but for the normaliser, which is c's here and there.

    Attributes:
      guidance: w.
      above_student: draw levels from the student's own on, up to the noisiest: what less noise
        decides is not guided before the student sees it. False: from the whole range.
      normalizer_floor: smallest normaliser of the gradient.
      times: how often each level is drawn, see `Levels`.

    Source: Decoupled DMD (arXiv 2511.22677), whose alpha is our w.
    """

    guidance: float = 1.0
    above_student: bool = True
    normalizer_floor: float = NORMALIZER_FLOOR
    times: str = UNIFORM
    name: ClassVar[str] = "guidance_augmentation"
    player: ClassVar[str] = "generator"

    @property
    def draws(self) -> Mapping[str, Levels]:
        """The noising "guidance", of all levels."""
        return {NOISING: Levels(times=self.times)}

    def check(self, setting: Setting) -> None:
        """Refuse guidance that is none, and a teacher that is guided by another objective too."""
        if self.guidance in (0, 1):
            what = "none" if self.guidance else "the teacher without its condition"
            raise Refused(
                f"'guidance_augmentation' has guidance={self.guidance:g}, which is {what}, "
                "expected another number, w of u + w (c - u); write "
                "guidance_augmentation:guidance=4."
            )
        for one in setting.objectives:
            theirs = None if one is self else getattr(one, "guidance", None)
            if theirs not in (None, 1):
                raise Refused(
                    f"'guidance_augmentation' has guidance={self.guidance} and {one.name!r} has "
                    f"guidance={theirs}: the teacher would be guided twice, expected once; "
                    "set config.distill.guidance=None."
                )

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss and its metrics."""
        if not jax.tree.leaves(view.cond):
            raise Refused(
                "'guidance_augmentation' got samples without a condition, expected one to guide "
                "to; leave it out of an unconditional model."
            )
        drawn = draws[NOISING]
        level = self._level(view, drawn.level) if self.above_student else drawn.level
        x_0 = jax.lax.stop_gradient(view.x_0)
        x_t, t = noised(view.schedule, x_0, Noising(level, drawn.noise))
        x0 = both_x0(view.teacher.denoiser)
        cond, uncond = x0(view.teacher.params, x_t, t, view.cond)
        # The loss pulls x_0 from its third to its second argument.
        loss, metrics = distribution_matching_loss(
            view.x_0,
            cond,
            cond - (self.guidance - 1.0) * (cond - uncond),
            normalizer_floor=self.normalizer_floor,
        )
        return loss, {
            "guidance_augmentation_loss": loss,
            "guidance_augmentation_norm": Norm(metrics["dm_grad_norm"]),
        }

    def _level(self, view: View, level: Int[Array, " b"]) -> Int[Array, " b"]:
        """Return levels of the whole range brought into that from the student's own level on."""
        levels = jnp.asarray(view.schedule.levels)
        n = len(view.schedule.levels)
        own = jnp.minimum(jnp.searchsorted(levels, view.t), n - 1)
        return own + level * (n - own) // n


def objective(normalizer_floor: float) -> GuidanceAugmentation:
    """Make it with what `config.distill` says of distribution matching."""
    return GuidanceAugmentation(normalizer_floor=normalizer_floor)
