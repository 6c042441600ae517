"""The diffusion GAN's two sides: a head on the critic's or teacher's features judges samples."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import GAN_LOSSES, R1_SAMPLES
from dmd2_jax.distill.objectives.contract import Objective
from dmd2_jax.distill.objectives.noising import Directions, Draw, Levels
from dmd2_jax.distill.objectives.view import Pass, View
from dmd2_jax.losses.adversarial import (
    approximate_r1_loss,
    discriminator_adversarial_loss,
    generator_adversarial_loss,
)
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
      loss: "softplus" or "hinge", that of `CriticGan`.

    Source: DMD2 (arXiv 2405.14867) eq. 5.
    """

    weight: float = 3e-3
    range: tuple[float, float] = (0.0, 1.0)
    diffusion: bool = True
    noising: str | None = None
    loss: str = "softplus"
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
        """What the discriminator reads."""
        return (Pass(self.noising or "gan", "features"),)

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss and its metrics."""
        (logits,) = view.logits(self.noising or "gan")
        return generator_adversarial_loss(logits, kind=self.loss)


@dataclasses.dataclass(frozen=True)
class CriticGan(Objective):
    """`discriminator_adversarial_loss` of real and of the student's samples, both noised.

    Attributes:
      range: as in `GeneratorGan`.
      diffusion: likewise.
      noising: another objective's noising of the student's samples, whose pass of the critic is
        shared; None: its own, "fake". Real samples have their own, "real".
      loss: "softplus" or "hinge".
      r1_weight: of `approximate_r1_loss`, within this objective; None: none of it.
      r1_sigma: how far its x_t are moved, in data units.
      r1_samples: whose it is of, "real" or "both", generated ones too.

    Source: DMD2 (arXiv 2405.14867) eq. 5; R1 by differences: APT (arXiv 2501.08316).
    """

    weight: float = 1e-2
    range: tuple[float, float] = (0.0, 1.0)
    diffusion: bool = True
    noising: str | None = None
    loss: str = "softplus"
    r1_weight: float | None = None
    r1_sigma: float = 0.1
    r1_samples: str = "real"
    name: ClassVar[str] = "critic_gan"
    player: ClassVar[str] = "critic"
    needs_real: ClassVar[bool] = True
    needs_discriminator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.loss not in GAN_LOSSES:
            raise Refused(f"gan_loss={self.loss!r} is unknown; choose one of {GAN_LOSSES}.")
        if self.r1_samples not in R1_SAMPLES:
            raise Refused(
                f"gan_r1_samples={self.r1_samples!r} is unknown; choose one of {R1_SAMPLES}."
            )

    @property
    def draws(self) -> Mapping[str, Draw]:
        """The noisings "real" and, unless another's is shared, "fake"; what R1 moves them by."""
        fake = Levels(self.range, last=False, clean=not self.diffusion)
        drawn: dict[str, Draw] = {REAL: dataclasses.replace(fake, of="real")}
        if self.noising is None:
            drawn["fake"] = fake
        return drawn | {f"r1_{name}": Directions() for name in self._smoothed}

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What the discriminator reads of both."""
        return Pass(REAL, "features"), Pass(self._fake, "features")

    def value(self, view: View, draws: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Return the loss; beside its metrics the logits' histograms."""
        logits_real, logits_fake = view.logits(REAL, self._fake)
        loss, found = discriminator_adversarial_loss(logits_real, logits_fake, kind=self.loss)
        metrics: dict[str, Any] = found | {
            "logits_real_histogram": histogram(logits_real),
            "logits_fake_histogram": histogram(logits_fake),
        }
        if self.r1_weight is not None:
            smoothed = self._smoothed
            shifts = [self.r1_sigma * draws[f"r1_{name}"] for name in smoothed]
            names = [REAL, self._fake][: len(smoothed)]
            beside = view.logits_beside(names, shifts)
            at = (logits_real, logits_fake)[: len(smoothed)]
            r1, found = approximate_r1_loss(*(jnp.stack(it, 1).ravel() for it in (at, beside)))
            loss, metrics = loss + self.r1_weight * r1, metrics | found
        return loss, metrics

    @property
    def _fake(self) -> str:
        return self.noising or "fake"

    @property
    def _smoothed(self) -> tuple[str, ...]:
        """Whose logits R1 is of."""
        if self.r1_weight is None:
            return ()
        return (REAL,) if self.r1_samples == "real" else (REAL, "fake")
