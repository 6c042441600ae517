"""What an objective draws up front: levels and noise; and what they make of clean samples."""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from dmd2_jax.config import rules
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.times import UNIFORM, parsed_times
from dmd2_jax.denoiser import Schedule
from dmd2_jax.diffusion.schedules import add_noise
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.runtime.summaries import Average, average_by_bin
from dmd2_jax.typing import Array, Float, Int, Key, PyTree, Shaped

LEVEL_BINS = 5
"""Bins of the schedule's levels, equal in number of levels, from least to most noisy."""

_RULES = {rules.LEVELS: ("range",), rules.TIMES: ("times",)}
_ROUNDING = 1e-6
"""Added before an excluded end is cut: 29 / 100 * 100 is a little less than 29."""


class Noising(NamedTuple):
    """How to noise one batch: level [b], an index into `schedule.levels`, noise [b, ...].

    Noise None leaves the batch clean (and tells the network that it is at that level).
    """

    level: Array
    noise: Array | None


@runtime_checkable
class Draw(Protocol):
    """What is drawn up front under a name.

    `Levels` is the one that noises samples. Another may draw anything that has the leading axes
    asked for; only its own objective reads it.
    """

    @property
    def of(self) -> str:
        """Whose samples are noised: "student" or "real"."""

    def draw(
        self,
        key: Key,
        name: str,
        lead: tuple[int, ...],
        sample_shape: tuple[int, ...],
        schedule: Schedule,
    ) -> PyTree:
        """Draw arrays of shape [*lead, ...], with keys of streams whose names begin with `name`.

        Args:
          key: the cycle's.
          name: of what is drawn.
          lead: (b,) in the generator's turn, (K, b) for all critic turns.
          sample_shape: of one sample.
          schedule: the critic's.
        """


@dataclasses.dataclass(frozen=True)
class Levels:
    """A noising: levels of a part of the schedule, and standard normal noise.

    A level is the share v of the part, from its least noisy end on, u being uniform in (0, 1):

        uniform                v = u
        logit_normal:MEAN:STD  v = 1 / (1 + exp(-n)), n normal with MEAN and STD
        shifted:S              v = S u / (1 + (S - 1) u); above 1 more levels are noisy
        polynomial:P           v = u^P; below 1 more levels are noisy

    Attributes:
      range: (low, high), the part of the levels, fractions of their number.
      last: whether the level at `high` is drawn too, as the original does for distribution
        matching; its GAN leaves it out.
      clean: no noise at all, at the least noisy level.
      of: whose samples are noised: "student" or "real".
      times: the distribution. On a flow without shift the whole part's share is the time.

    Raises:
      ValueError: on construction, for a range or a distribution that is none.

    Source: Esser et al. 2024 (arXiv 2403.03206), equations 19 and 23.
    """

    range: tuple[float, float] = (0.0, 1.0)
    last: bool = True
    clean: bool = False
    of: str = "student"
    times: str = UNIFORM

    def __post_init__(self) -> None:
        wrong = rules.value_faults(vars(self), _RULES, remedy="correct {}")
        rules.refuse(list(wrong), "a noising")
        if self.of not in ("student", "real"):
            raise Refused(f"of={self.of!r} is unknown; choose 'student' or 'real'.")

    def draw(
        self,
        key: Key,
        name: str,
        lead: tuple[int, ...],
        sample_shape: tuple[int, ...],
        schedule: Schedule,
    ) -> Noising:
        """Draw [*lead] levels and [*lead, *sample_shape] noise."""
        if self.clean:
            return Noising(jnp.zeros(lead, jnp.int32), None)
        low, high = level_bounds(self.range, len(schedule.levels), last=self.last)
        level = _drawn_levels(stream_key(key, f"{name}/index"), self.times, lead, low, high)
        noise = jax.random.normal(stream_key(key, f"{name}/noise"), (*lead, *sample_shape))
        return Noising(level, noise)


@dataclasses.dataclass(frozen=True)
class Directions:
    """A draw of standard normal directions, which noises nothing by itself."""

    of: str = "student"

    def draw(
        self,
        key: Key,
        name: str,
        lead: tuple[int, ...],
        sample_shape: tuple[int, ...],
        schedule: Schedule,
    ) -> Float[Array, "..."]:
        """Draw [*lead, *sample_shape]."""
        return jax.random.normal(stream_key(key, f"{name}/noise"), (*lead, *sample_shape))


def _drawn_levels(
    key: Key, times: str, lead: tuple[int, ...], low: int, high: int
) -> Int[Array, "..."]:
    """Draw levels of [low, high) of the distribution `times`."""
    name, numbers = parsed_times(times)
    if name == UNIFORM:
        return jax.random.randint(key, lead, low, high)
    if name == "logit_normal":
        mean, std = numbers
        share = jax.nn.sigmoid(mean + std * jax.random.normal(key, lead))
    else:
        (number,), u = numbers, jax.random.uniform(key, lead)
        share = number * u / (1.0 + (number - 1.0) * u) if name == "shifted" else u**number
    # A share that rounding makes 1 is of the last level.
    return jnp.minimum(low + (share * (high - low)).astype(jnp.int32), high - 1)


def level_bounds(fractions: tuple[float, float], num_levels: int, *, last: bool) -> tuple[int, int]:
    """Return [low, high) level indices: int(low n) ... int(high n), one more with `last`.

    Args:
      fractions: (low, high) parts of the grid in [0, 1].
      num_levels: n.
      last: whether the level at `high` is included; there is none at 1.

    Raises:
      ValueError: if no level is left.
    """
    low = int(fractions[0] * num_levels)
    if last:
        return low, min(int(fractions[1] * num_levels) + 1, num_levels)
    high = int(fractions[1] * num_levels + _ROUNDING)
    if high <= low:
        raise Refused(
            f"range={fractions} holds none of the schedule's {num_levels} levels; widen it by "
            f"{1 / num_levels:.3g}."
        )
    return low, high


def noised(
    schedule: Schedule, x_0: Float[Array, "b ..."], draw: Noising
) -> tuple[Float[Array, "b ..."], Shaped[Array, " b"]]:
    """Return (x_t, t) of a drawn noising of x_0."""
    t = jnp.asarray(schedule.levels)[draw.level]
    if draw.noise is None:
        return x_0, t
    return add_noise(schedule, x_0, draw.noise, t), t


def average_by_level(
    values: Float[Array, " b"], level: Int[Array, " b"], schedule: Schedule
) -> Average:
    """Sum a batch's values in each of the `LEVEL_BINS` bins of the noise levels.

    Args:
      values: [b].
      level: [b] indices into `schedule.levels`.
      schedule: the critic's.

    Returns:
      An Average of shape [LEVEL_BINS].
    """
    return average_by_bin(values, level * LEVEL_BINS // len(schedule.levels), LEVEL_BINS)
