"""The first step kept: its target is the teacher's ODE, known in closed form of Gaussians."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.distill.objectives import Denoising, DistributionMatching, FirstStep
from tests.distill import toy
from tests.distill.objectives import gaussians

NOISE = jax.random.normal(jax.random.key(0), (5, 1))


def target_factor(one: FirstStep) -> float:
    """Return f of the student f noise at which the loss has its minimum, 0."""
    draws = {"first_step": NOISE}

    def loss(f):
        turn = gaussians.view(NOISE, draws, one, from_noise=lambda noise, cond: f * noise)
        return one.value(turn, draws)[0]

    # mean (f - target)^2 noise^2 is a parabola in f: its slope at 0 says where.
    target = float(-jax.grad(loss)(0.0) / (2.0 * jnp.mean(jnp.square(NOISE))))
    np.testing.assert_allclose(loss(target), 0.0, atol=1e-6)
    return target


def test_one_step_is_the_teachers_first_estimate() -> None:
    factor = gaussians.x0_factor(gaussians.TEACHER_STD, 3.0)
    np.testing.assert_allclose(target_factor(FirstStep(solver_steps=1)), factor, rtol=1e-5)


def test_more_steps_near_the_solution() -> None:
    """The ODE of N(0, s^2) scales: x_0 = s x_t / sqrt(alpha^2 s^2 + sigma^2)."""
    alpha, sigma = 0.25, 0.75
    exact = gaussians.TEACHER_STD / np.sqrt((alpha * gaussians.TEACHER_STD) ** 2 + sigma**2)
    errors = [abs(target_factor(FirstStep(solver_steps=n)) - exact) for n in (1, 4, 30)]
    assert errors[0] > 2.0 * errors[1] > 4.0 * errors[2]
    assert errors[2] < 0.05 * exact


@pytest.mark.parametrize(
    ("one", "changes", "message"),
    [
        (FirstStep(), {}, "the student has one, expected several student_times"),
        (FirstStep(), {"student_times": (8.0, 2.0)}, "set first_trained_step=1"),
        (FirstStep(solver_steps=0), {}, "solver_steps=0, expected at least 1"),
    ],
)
def test_what_it_cannot_stand_beside_is_refused(one, changes, message: str) -> None:
    objectives = (one, DistributionMatching(), Denoising())
    with pytest.raises(Refused, match=message):
        dataclasses.replace(toy.config(), objectives=objectives, **changes)
