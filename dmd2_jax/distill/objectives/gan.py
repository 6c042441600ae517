"""The diffusion GAN's two sides: a head on the critic's features tells real from fake."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dmd2_jax.distill.objectives.contract import Objective
from dmd2_jax.distill.objectives.noising import Levels
from dmd2_jax.distill.objectives.view import Pass, View
from dmd2_jax.losses.adversarial import discriminator_adversarial_loss, generator_adversarial_loss
from dmd2_jax.runtime.summaries import histogram
from dmd2_jax.typing import Array

REAL = "real"


@dataclasses.dataclass(frozen=True)
class GeneratorGan(Objective):
    """`generator_adversarial_loss` of the student's noised samples.

    Attributes:
      range: the part of the schedule's levels that is drawn from, [low, high): the last level is
        left out, as the original does for its GAN.
      diffusion: False shows the discriminator clean images at the least noisy level.
      noising: another objective's noising, whose pass of the critic is shared; None: its own,
        "gan".

    Source: DMD2 (arXiv 2405.14867) eq. 5.
    """

    weight: float = 3e-3
    range: tuple[float, float] = (0.0, 1.0)
    diffusion: bool = True
    noising: str | None = None
    name: ClassVar[str] = "generator_gan"
    player: ClassVar[str] = "generator"
    needs_discriminator: ClassVar[bool] = True

    @property
    def draws(self) -> Mapping[str, Levels]:
        """The noising "gan", unless another's is shared."""
        if self.noising is not None:
            return {}
        return {"gan": Levels(self.range, last=False, clean=not self.diffusion)}

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The critic's features."""
        return (Pass(self.noising or "gan", "features"),)

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss and its metrics."""
        (logits,) = view.logits(self.noising or "gan")
        return generator_adversarial_loss(logits)


@dataclasses.dataclass(frozen=True)
class CriticGan(Objective):
    """`discriminator_adversarial_loss` of real and of the student's samples, both noised.

    Attributes:
      range: as in `GeneratorGan`.
      diffusion: likewise.
      noising: another objective's noising of the student's samples, whose pass of the critic is
        shared; None: its own, "fake". Real samples have their own, "real".

    Source: DMD2 (arXiv 2405.14867) eq. 5.
    """

    weight: float = 1e-2
    range: tuple[float, float] = (0.0, 1.0)
    diffusion: bool = True
    noising: str | None = None
    name: ClassVar[str] = "critic_gan"
    player: ClassVar[str] = "critic"
    needs_real: ClassVar[bool] = True
    needs_discriminator: ClassVar[bool] = True

    @property
    def draws(self) -> Mapping[str, Levels]:
        """The noisings "real" and, unless another's is shared, "fake"."""
        fake = Levels(self.range, last=False, clean=not self.diffusion)
        real = {REAL: dataclasses.replace(fake, of="real")}
        return real if self.noising is not None else real | {"fake": fake}

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The critic's features of both."""
        return Pass(REAL, "features"), Pass(self.noising or "fake", "features")

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss; beside its metrics the logits' histograms."""
        logits_real, logits_fake = view.logits(REAL, self.noising or "fake")
        loss, metrics = discriminator_adversarial_loss(logits_real, logits_fake)
        return loss, metrics | {
            "logits_real_histogram": histogram(logits_real),
            "logits_fake_histogram": histogram(logits_fake),
        }
