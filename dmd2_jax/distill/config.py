"""What a distillation run is made of: the players and the static settings."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Adapter, Denoiser, Discriminator, map_params
from dmd2_jax.typing import Params

LR_SCHEDULES = ("constant", "cosine")
MOMENT_DTYPES = ("float32", "bfloat16")


class Players(NamedTuple):
    """The networks of a run; their parameters live in TrainState (the teacher's, with the caller).

    Attributes:
      teacher: frozen. Its parameters are an argument of the cycle, never part of the state.
      generator: the student.
      critic: tracks the score of what the generator makes ("fake score").
      discriminator: the GAN head on the critic's features; None without a GAN.
      generator_adapter, critic_adapter: if given, the player shares the teacher's parameters as its
        frozen base, and its parameters in the TrainState are its own alone, such as LoRA's.
    """

    teacher: Denoiser
    generator: Denoiser
    critic: Denoiser
    discriminator: Discriminator | None = None
    generator_adapter: Adapter | None = None
    critic_adapter: Adapter | None = None

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

    A weight of None removes that loss: its network passes are not even traced.

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
      dm_weight: weight of distribution matching; None = GAN only.
      gan_generator_weight: weight of the GAN loss for the generator; None = no GAN.
      gan_critic_weight: weight of the GAN loss for critic and discriminator; None = no GAN.
      regression_weight: weight of DMD's regression loss on teacher ODE pairs; None = DMD2.
      train_critic: False drops denoising score matching ("GAN only" needs no score).
      guidance: w of the teacher's u + w (c - u); None = conditional teacher.
      dm_range: the part of the schedule's levels that DM draws from (last level included).
      gan_range: the part that the GAN draws from.
      diffusion_gan: False shows the discriminator clean images at the least noisy level.
      denoising_weight: weight of the critic's denoising loss (see losses.denoising).
      sigma_data: standard deviation of the data, for the "edm" denoising weight.
      shared_pass: noise the student's samples once a turn and let one critic pass serve both the
        score loss and the GAN. Faster; official code draws twice.
      first_turn_reuses_images: the cycle's first critic turn sees the images that the generator
        turn made before its update (official); False: fresh images for every critic turn.
      normalizer_floor: smallest normaliser of the DM gradient.
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
    dm_weight: float | None = 1.0
    gan_generator_weight: float | None = 3e-3
    gan_critic_weight: float | None = 1e-2
    regression_weight: float | None = None
    train_critic: bool = True
    guidance: float | None = None
    dm_range: tuple[float, float] = (0.02, 0.98)
    gan_range: tuple[float, float] = (0.0, 1.0)
    diffusion_gan: bool = True
    denoising_weight: str = "edm"
    sigma_data: float = 0.5
    shared_pass: bool = False
    first_turn_reuses_images: bool = True
    normalizer_floor: float = 1e-8
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
    def has_gan(self) -> bool:
        """Whether a discriminator is trained."""
        return self.gan_critic_weight is not None

    def __post_init__(self) -> None:
        times = self.student_times
        _require(self.critic_turns >= 1, f"critic_turns={self.critic_turns} must be at least 1.")
        _require(self.batch_size >= 1, f"batch_size={self.batch_size} must be at least 1.")
        _require(
            len(times) > 0 and all(a > b for a, b in itertools.pairwise(times)),
            f"student_times={times} must be strictly decreasing, for example (999, 749, 499, 249).",
        )
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
        for name in ("dm_range", "gan_range"):
            low, high = getattr(self, name)
            _require(
                0.0 <= low < high <= 1.0,
                f"{name}={(low, high)} must satisfy 0 <= low < high <= 1: fractions of the levels.",
            )
        _require(
            (self.gan_generator_weight is None) == (self.gan_critic_weight is None),
            f"gan_generator_weight={self.gan_generator_weight} and "
            f"gan_critic_weight={self.gan_critic_weight} must both be numbers or both be None.",
        )
        _require(
            not (self.dm_weight is None and not self.has_gan and self.regression_weight is None),
            "dm_weight, the GAN weights and regression_weight are all None: nothing trains the "
            "generator; give at least one of them a number.",
        )
        _require(
            self.train_critic or self.dm_weight is None,
            "train_critic=False leaves distribution matching without a critic; set dm_weight=None "
            "(GAN only) or train_critic=True.",
        )
        _require(
            self.train_critic or self.has_gan,
            "train_critic=False without a GAN leaves the critic turn empty; use one of the two.",
        )
        _require(
            self.moment_dtype in MOMENT_DTYPES,
            f"moment_dtype={self.moment_dtype!r} is unknown; choose one of {MOMENT_DTYPES}.",
        )
        _require(
            self.lr_schedule in LR_SCHEDULES,
            f"lr_schedule={self.lr_schedule!r} is unknown; choose one of {LR_SCHEDULES}.",
        )
        _require(
            self.lr_schedule == "constant" or self.total_turns > 0,
            f"lr_schedule={self.lr_schedule!r} needs total_turns={self.total_turns} to be "
            "positive; set it to cycles * critic_turns.",
        )


def _divisor(number: int, near: int) -> int:
    """Return the divisor of `number` that is nearest to `near`."""
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - near))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise Refused(message)
