"""The few-step student as one scan over its steps: sampling and backward simulation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Denoiser, Schedule
from dmd2_jax.diffusion.schedules import add_noise
from dmd2_jax.typing import Array, Float, Int, Params, PyTree, Shaped


def check_student_times(
    times: Sequence[float | int], schedule: Schedule, name: str = "student_times"
) -> None:
    """Refuse times of the student's steps that are none of a schedule.

    Args:
      times: the student's.
      schedule: where time is an index, its levels are the times there are; else any time between
        its ends is one.
      name: of the times, for the error.

    Raises:
      Refused: naming the times, with an example of this schedule's.
    """
    levels = np.asarray(schedule.levels)
    low, high = levels[0], levels[-1]
    if np.issubdtype(levels.dtype, np.integer):
        wrong = [t for t in times if t not in levels]
        expected = f"whole numbers in {low}..{high}"
    else:
        rounding = 1e-6  # of the ends, float32
        wrong = [t for t in times if not low * (1 - rounding) <= t <= high * (1 + rounding)]
        expected = f"times within the schedule's [{low:.6g}, {high:.6g}]"
    if wrong:
        n = len(levels)
        quarters = [levels[-(-n * i // 4) - 1] for i in (4, 3, 2, 1)]
        some = ", ".join(f"{t:.3g}" if isinstance(t, np.floating) else f"{t}" for t in quarters)
        raise Refused(
            f"{name} has {wrong}, expected {expected}; one step is usually ({high:.6g},), four are "
            f"for example ({some})."
        )


def backward_simulation(
    generator: Denoiser,
    params: Params,
    noise: Float[Array, "s b ..."],
    step: Int[Array, ""] | int,
    cond: PyTree,
    *,
    times: tuple[float, ...],
) -> Float[Array, "b ..."]:
    """Roll the student from pure noise to the input of its step `step`.

        x_{t_0} = prior_scale(t_0) noise_0
        x_{t_{i+1}} = alpha(t_{i+1}) x_0(x_{t_i}, t_i) + sigma(t_{i+1}) noise_{i+1}

    A scan over the steps, in which those from `step` on do nothing; no gradient flows through it.

    Args:
      generator: the student.
      params: its parameters.
      noise: [s, b, ...] standard normal, one for each student step's input.
      step: [] in 0 ... s - 1; 0 returns the scaled noise itself. May be traced.
      cond: the student's condition, leading axis b.
      times: the s decreasing times of the student's steps.

    Returns:
      [b, ...] the input x_t of step `step`, at time times[step].

    Source: DMD2 (arXiv 2405.14867) section 4.5.
    """
    _check_steps(noise.shape, times)
    schedule, batch = generator.schedule, noise.shape[1]
    grid = jnp.asarray(times, schedule.levels.dtype)

    def at(t: Shaped[Array, ""]) -> Shaped[Array, " b"]:
        return jnp.full((batch,), t)

    def advance(x_t: Array, t: Array, t_next: Array, eps: Array) -> Array:
        x_0 = generator.x0(params, x_t, at(t), cond)
        return add_noise(schedule, x_0, eps, at(t_next))

    def body(x_t: Array, inputs: tuple) -> tuple[Array, None]:
        i, t, t_next, eps = inputs
        return jax.lax.cond(i < step, advance, lambda x, *_: x, x_t, t, t_next, eps), None

    x_t = prior_sample(generator, noise[0], times)
    if len(times) > 1:
        x_t, _ = jax.lax.scan(
            body, x_t, (jnp.arange(len(times) - 1), grid[:-1], grid[1:], noise[1:])
        )
    return jax.lax.stop_gradient(x_t)


def _check_steps(shape: tuple[int, ...], times: tuple[float, ...]) -> None:
    if len(shape) < 2 or shape[0] != len(times):
        raise Refused(
            f"noise has shape {shape}, expected [s, b, ...] with s={len(times)}, one for each of "
            f"times={tuple(times)}; {'give noise[None]' if len(times) == 1 else 'draw all'}."
        )


def prior_sample(
    generator: Denoiser, noise: Float[Array, "b ..."], times: tuple[float, ...]
) -> Float[Array, "b ..."]:
    """Scale standard normal `noise` to the input of the student's first step."""
    t = jnp.asarray(times[0], generator.schedule.levels.dtype)
    scale = generator.schedule.prior_scale(t[None])
    return noise * scale.reshape((1,) * noise.ndim)


def generate(
    generator: Denoiser,
    params: Params,
    noise: Float[Array, "s b ..."],
    cond: PyTree,
    *,
    times: tuple[float, ...],
) -> Float[Array, "b ..."]:
    """Sample the student: all its steps, then its final x_0.

    Args:
      generator: the student.
      params: its parameters.
      noise: [s, b, ...] standard normal.
      cond: condition, leading axis b.
      times: the student's s decreasing times.

    Returns:
      [b, ...] x_0, float32.

    Raises:
      Refused: if `noise` has no axis of the steps, or a time is none of the generator's schedule.
    """
    check_student_times(times, generator.schedule, "times")
    _check_steps(noise.shape, times)
    last = len(times) - 1
    x_t = backward_simulation(generator, params, noise, last, cond, times=times)
    t = jnp.full((x_t.shape[0],), times[last], generator.schedule.levels.dtype)
    return generator.x0(params, x_t, t, cond)
