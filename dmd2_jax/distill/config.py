"""What a distillation run is made of: the players and the static settings."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from dmd2_jax.config import rules
from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Adapter, Denoiser, Discriminator, map_params
from dmd2_jax.distill.objectives.contract import (
    Objective,
    Setting,
    check_objectives,
    check_setting,
    of_player,
)
from dmd2_jax.distill.objectives.official import dmd2
from dmd2_jax.typing import Params

_RULES = {
    rules.CRITIC_TURNS: ("critic_turns",),
    rules.AT_LEAST_ONE: ("batch_size",),
    rules.DECREASING: ("student_times",),
    rules.GUIDANCE_RANGE: ("guidance_range",),
}
_CHOICES = {
    "gan_features": rules.GAN_FEATURES,
    "moment_dtype": rules.DTYPES,
    "lr_schedule": rules.LR_SCHEDULES,
}


class _Players(NamedTuple):
    teacher: Denoiser
    generator: Denoiser
    critic: Denoiser
    discriminator: Discriminator | None = None
    generator_adapter: Adapter | None = None
    critic_adapter: Adapter | None = None
    critic_step: Callable[[Params, Any], Params] | None = None


class Players(_Players):
    """The networks of a run; their parameters live in TrainState (the teacher's, with the caller).

    Attributes:
      teacher: frozen. Its parameters are an argument of the cycle, never part of the state.
      generator: the student; by default the teacher's network.
      critic: tracks the score of what the generator makes ("fake score"); likewise.
      discriminator: the GAN head on the critic's features; None without a GAN.
      generator_adapter, critic_adapter: if given, the player shares the teacher's parameters as its
        frozen base, and its parameters in the TrainState are its own alone, such as LoRA's.
      critic_step: (the critic's parameters, the student's step []) -> what its denoiser takes for
        samples of that step; None: the critic is not told which step made them.
    """

    __slots__ = ()

    def __new__(
        cls,
        teacher: Denoiser,
        generator: Denoiser | None = None,
        critic: Denoiser | None = None,
        discriminator: Discriminator | None = None,
        generator_adapter: Adapter | None = None,
        critic_adapter: Adapter | None = None,
        critic_step: Callable[[Params, Any], Params] | None = None,
    ) -> "Players":
        """Fill in the teacher's network where none is given."""
        return super().__new__(
            cls,
            teacher,
            generator or teacher,
            critic or teacher,
            discriminator,
            generator_adapter,
            critic_adapter,
            critic_step,
        )

    def on_base(self, base: Params) -> "Players":
        """Return players whose denoisers take the parameters that the TrainState holds.

        `run_cycle` does this; who calls the turns by themselves does it before.

        Args:
          base: the teacher's parameters; nothing is differentiated by them.

        Returns:
          Players without adapters.
        """
        return self._replace(
            generator=_on_base(self.generator, self.generator_adapter, base),
            critic=_on_base(self.critic, self.critic_adapter, base),
            generator_adapter=None,
            critic_adapter=None,
        )


def _on_base(denoiser: Denoiser, adapter: Adapter | None, base: Params) -> Denoiser:
    if adapter is None:
        return denoiser
    return map_params(denoiser, functools.partial(adapter.combine, base))


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """The settings of the algorithm; the defaults are DMD2's ImageNet-64 recipe.

    Attributes:
      sample_shape: shape of one sample, for example (64, 64, 3).
      batch_size: global batch of each turn.
      microbatches: parts that each batch is computed in, one after another; a divisor of it.
      critic_turns: K, critic updates for each generator update (TTUR); 1 = no TTUR.
      student_times: the student's steps as decreasing times of its schedule: (80.0,) is one step.
      backward_simulation: make the input of later steps by rolling out the student itself;
        False: noise real samples instead.
      first_trained_step: the student's steps before it are only rolled out, so that critic and
        losses see the outputs of the rest alone; 0 trains them all, as the paper does.
      guidance_range: (low, high): each sample has a guidance scale w, uniform in it, and all
        players' conditions are `Guided(cond, w)`: a teacher of `guided_by_cond`, and generator and
        critic that are told w (`told_scale`); (): no player is told one.
      objectives: what the players minimise, from `objectives.dmd2`, and of your own.
      gan_features: whose features the discriminator reads: the critic's, which learn with it, or
        the frozen "teacher"'s.
      first_turn_reuses_images: the cycle's first critic turn sees the images that the generator
        turn made before its update (official); False: fresh images for every critic turn.
      generator_lr, critic_lr: peak learning rates (the discriminator uses critic_lr).
      lr_schedule: after the warm-up: "constant" or "cosine" (to 0 at `total_turns`).
      warmup: critic turns of linear warm-up, for both players; 0 = none.
      total_turns: critic turns of the whole run, for the cosine.
      b1, b2, eps, weight_decay: AdamW's.
      moment_dtype: of AdamW's moments: "float32", or "bfloat16" for half the memory.
      clip_norm: largest gradient norm; critic and discriminator are clipped jointly.
      ema_decays: one average of the generator for each decay, updated every generator turn.
      ema_rampup: use min(decay, (1 + n) / (10 + n)) at generator turn n, so that short runs are
        not averages of their initialisation.

    Raises:
      ValueError: on construction, for values that contradict each other.
    """

    sample_shape: tuple[int, ...]
    batch_size: int
    microbatches: int = 1
    critic_turns: int = 5
    student_times: tuple[float, ...] = (80.0,)
    backward_simulation: bool = True
    first_trained_step: int = 0
    guidance_range: tuple[float, ...] = ()
    objectives: tuple[Objective, ...] = dataclasses.field(default_factory=dmd2)
    gan_features: str = "critic"
    first_turn_reuses_images: bool = True
    generator_lr: float = 2e-6
    critic_lr: float = 2e-6
    lr_schedule: str = "constant"
    warmup: int = 500
    total_turns: int = 0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    moment_dtype: str = "float32"
    clip_norm: float = 10.0
    ema_decays: tuple[float, ...] = ()
    ema_rampup: bool = True

    @property
    def has_discriminator(self) -> bool:
        """Whether a discriminator is trained."""
        return any(one.needs_discriminator for one in self.objectives)

    @property
    def needs_real(self) -> bool:
        """Whether real samples are read: by an objective, or as the student's noised input."""
        noised_input = not self.backward_simulation and len(self.student_times) > 1
        return noised_input or any(one.needs_real for one in self.objectives)

    @property
    def needs_pairs(self) -> bool:
        """Whether the teacher's ODE pairs are read."""
        return any(one.needs_pairs for one in self.objectives)

    def of_player(self, player: str) -> tuple[Objective, ...]:
        """Return the objectives of "generator" or "critic", in their order."""
        return of_player(self.objectives, player)

    def __post_init__(self) -> None:
        times = self.student_times
        check_objectives(self.objectives)
        values = vars(self)
        faults = [
            *rules.value_faults(values, _RULES, remedy="correct {}"),
            *rules.choice_faults(values, _CHOICES),
        ]
        rules.refuse(faults, "the DistillConfig")
        _require(
            0 <= self.first_trained_step < len(times),
            f"first_trained_step={self.first_trained_step} must be one of the student's steps, "
            f"0..{len(times) - 1}, which student_times={times} are.",
        )
        _require(
            self.microbatches >= 1 and self.batch_size % self.microbatches == 0,
            f"microbatches={self.microbatches} must divide batch_size={self.batch_size}; try "
            f"{_divisor(self.batch_size, self.microbatches)}.",
        )
        _require(
            self.lr_schedule == "constant" or self.total_turns > 0,
            f"lr_schedule={self.lr_schedule!r} needs total_turns={self.total_turns} to be "
            "positive; set it to cycles * critic_turns.",
        )
        self._check_guidance()
        check_setting(
            Setting(self.objectives, len(times), self.first_trained_step, self.microbatches)
        )

    def _check_guidance(self) -> None:
        """Refuse objectives that know one scale, where each sample has its own."""
        for one in self.objectives if self.guidance_range else ():
            own = getattr(one, "guidance", None)
            fault = "" if own in (None, 1) else f"guidance={own}"
            if one.needs_pairs:
                fault = "pairs that the teacher made at one scale"
            _require(
                not fault,
                f"guidance_range={self.guidance_range} and objective {one.name!r} with {fault}, "
                "expected one of them: with a range each sample has a scale of its own; leave "
                "guidance_range or the other away.",
            )


def _divisor(number: int, near: int) -> int:
    """Return the divisor of `number` that is nearest to `near`."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - near))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise Refused(message)
