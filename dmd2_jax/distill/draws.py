"""Every random number of a cycle, drawn up front from (root key, cycle index).

The turns take their draws as arguments, so that a test can inject recorded ones and a turn is a
pure function of what it is given.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dmd2_jax.denoiser import Schedule
from dmd2_jax.diffusion.schedules import add_noise
from dmd2_jax.distill.config import DistillConfig
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.typing import Array, Float, Key, Shaped


class Noising(NamedTuple):
    """How to noise one batch: level [b], an index into `schedule.levels`, noise [b, ...].

    Noise None leaves the batch clean (and tells the network that it is at that level).
    """

    level: Array
    noise: Array | None


class RolloutDraws(NamedTuple):
    """What one student batch is made from.

    Attributes:
      noise: [s, b, ...] standard normal; entry i makes the input of student step i.
      step: [] the student step to train, one for the global batch.
    """

    noise: Array
    step: Array


class GeneratorDraws(NamedTuple):
    """The generator turn's noisings; None where the loss is absent (or shares `dm`)."""

    dm: Noising | None
    gan: Noising | None


class CriticDraws(NamedTuple):
    """One critic turn's noisings; None where the loss is absent (or shares `denoising`)."""

    denoising: Noising | None
    real: Noising | None
    fake: Noising | None


class CycleDraws(NamedTuple):
    """A cycle's draws.

    Attributes:
      rollouts: [k, ...], k = K, or K + 1 when no critic turn reuses the generator's images.
        Entry 0 is the generator turn's.
      generator: the generator turn's noisings.
      critic: [K, ...] the critic turns' noisings.
    """

    rollouts: RolloutDraws
    generator: GeneratorDraws
    critic: CriticDraws


def level_bounds(fractions: tuple[float, float], num_levels: int) -> tuple[int, int]:
    """Return [low, high) level indices: int(low n) ... min(int(high n) + 1, n), as official.

    Args:
      fractions: (low, high) parts of the grid in [0, 1].
      num_levels: n.
    """
    low, high = fractions
    return int(low * num_levels), min(int(high * num_levels) + 1, num_levels)


def draw_cycle(key: Key, config: DistillConfig, schedule: Schedule) -> CycleDraws:
    """Draw all random numbers of one cycle.

    Args:
      key: this cycle's key, `stream_key(root, "cycle", cycle_index)`.
      config: the settings.
      schedule: the critic's schedule (its levels are what the indices point into).

    Returns:
      The draws; independent of device count and sharding.
    """
    k, b, shape = config.critic_turns, config.batch_size, config.sample_shape
    num_levels = len(schedule.levels)

    def normal(name: str, *lead: int) -> Array:
        return jax.random.normal(stream_key(key, name), (*lead, b, *shape))

    def noising(name: str, fractions: tuple[float, float], *lead: int) -> Noising:
        low, high = level_bounds(fractions, num_levels)
        index = jax.random.randint(stream_key(key, f"{name}/index"), (*lead, b), low, high)
        return Noising(index, normal(f"{name}/noise", *lead))

    def gan_noising(name: str, *lead: int) -> Noising:
        if config.diffusion_gan:
            return noising(name, config.gan_range, *lead)
        return Noising(jnp.zeros((*lead, b), jnp.int32), None)

    rollouts = k if config.first_turn_reuses_images else k + 1
    steps = len(config.student_times)
    shares_dm = config.shared_pass and config.dm_weight is not None
    shares_denoising = config.shared_pass and config.train_critic
    return CycleDraws(
        rollouts=RolloutDraws(
            noise=normal("rollout/noise", rollouts, steps),
            step=jax.random.randint(
                stream_key(key, "rollout/step"), (rollouts,), config.first_trained_step, steps
            ),
        ),
        generator=GeneratorDraws(
            dm=noising("dm", config.dm_range) if config.dm_weight is not None else None,
            gan=gan_noising("gan") if config.has_gan and not shares_dm else None,
        ),
        critic=CriticDraws(
            denoising=noising("denoising", (0.0, 1.0), k) if config.train_critic else None,
            real=gan_noising("real", k) if config.has_gan else None,
            fake=gan_noising("fake", k) if config.has_gan and not shares_denoising else None,
        ),
    )


def noised(
    schedule: Schedule, x_0: Float[Array, "b ..."], draw: Noising
) -> tuple[Float[Array, "b ..."], Shaped[Array, " b"]]:
    """Return (x_t, t) of a drawn noising of x_0."""
    t = jnp.asarray(schedule.levels)[draw.level]
    if draw.noise is None:
        return x_0, t
    return add_noise(schedule, x_0, draw.noise, t), t
