"""Every random number of a cycle, drawn up front from (root key, cycle index).

The turns take their draws as arguments, so that a test can inject recorded ones and a turn is a
pure function of what it is given.
"""

from typing import NamedTuple

import jax

from dmd2_jax.denoiser import Schedule
from dmd2_jax.distill.config import DistillConfig
from dmd2_jax.distill.objectives.contract import merged_draws
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.typing import Array, Key, PyTree


class RolloutDraws(NamedTuple):
    """What one student batch is made from.

    Attributes:
      noise: [s, b, ...] standard normal; entry i makes the input of student step i.
      step: [] the student step to train, one for the global batch.
    """

    noise: Array
    step: Array


class ScaleDraws(NamedTuple):
    """The guidance scale of each sample, uniform in `config.guidance_range`.

    Attributes:
      fake: [K, b] of the student's samples.
      real: [K, b] of the real ones, so that the scale does not tell them apart.
    """

    fake: Array
    real: Array


class CycleDraws(NamedTuple):
    """A cycle's draws.

    Attributes:
      rollouts: [k, ...], k = K, or K + 1 when no critic turn reuses the generator's images.
        Entry 0 is the generator turn's.
      generator: what the objectives of the generator turn draw, by name.
      critic: [K, ...] what those of the critic turns draw, by name.
      scales: of a student that takes the guidance scale; None: it takes none.
    """

    rollouts: RolloutDraws
    generator: dict[str, PyTree]
    critic: dict[str, PyTree]
    scales: ScaleDraws | None = None


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
    rollouts = k if config.first_turn_reuses_images else k + 1
    steps = len(config.student_times)

    def drawn(player: str, *lead: int) -> dict[str, PyTree]:
        draws = merged_draws(config.of_player(player))
        return {name: draw.draw(key, name, lead, shape, schedule) for name, draw in draws.items()}

    return CycleDraws(
        rollouts=RolloutDraws(
            noise=jax.random.normal(stream_key(key, "rollout/noise"), (rollouts, steps, b, *shape)),
            step=jax.random.randint(
                stream_key(key, "rollout/step"), (rollouts,), config.first_trained_step, steps
            ),
        ),
        generator=drawn("generator", b),
        critic=drawn("critic", k, b),
        scales=_draw_scales(key, config),
    )


def _draw_scales(key: Key, config: DistillConfig) -> ScaleDraws | None:
    if not config.guidance_range:
        return None
    low, high = config.guidance_range
    shape = (config.critic_turns, config.batch_size)

    def drawn(name: str) -> Array:
        key_of = stream_key(key, f"guidance/{name}")
        return jax.random.uniform(key_of, shape, minval=low, maxval=high)

    return ScaleDraws(drawn("fake"), drawn("real"))
