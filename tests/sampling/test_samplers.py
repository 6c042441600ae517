"""Which solver and times a teacher's sampler takes, by its schedule."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config import defaults
from dmd2_jax.denoiser import Denoiser, Schedule
from dmd2_jax.diffusion.samplers import heun, sampling_times
from dmd2_jax.diffusion.schedules import edm, karras_sigmas, rectified_flow
from dmd2_jax.sampling.samplers import teacher_sampler

NOISE = jax.random.normal(jax.random.key(0), (1, 2, 4, 4, 1))


def x0(params, x_t, t, cond):
    """A nonlinear function of sample and time."""
    return jnp.tanh(x_t) / (1.0 + t[:, None, None, None])


def images(schedule: Schedule, family: str) -> np.ndarray:
    denoiser = Denoiser(x0, None, None, schedule, lambda cond: cond)  # type: ignore[arg-type]
    config = defaults.get_config(family)
    sampler = teacher_sampler(SimpleNamespace(denoiser=denoiser), config)  # type: ignore[arg-type]
    assert sampler.nfe == 2 * config.teacher.sampler_steps - 1
    return np.asarray(sampler.run({}, NOISE, None))


def test_a_flow_is_solved_at_equal_parts_of_its_shifted_levels() -> None:
    schedule = rectified_flow(shift=3.0)
    times = sampling_times(schedule, 18)
    assert times[9] == np.float32(3 * 0.5 / (1 + 2 * 0.5))  # the shift of one half
    expected = heun(x0, {}, NOISE[0], None, times=times)
    np.testing.assert_allclose(images(schedule, "sit"), expected, rtol=1e-6, atol=1e-6)


def test_sigmas_are_solved_at_karras_times() -> None:
    expected = heun(x0, {}, NOISE[0], None, times=karras_sigmas(18))
    np.testing.assert_allclose(images(edm(), "edm"), expected, rtol=1e-6, atol=1e-6)
