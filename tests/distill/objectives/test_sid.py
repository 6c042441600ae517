"""SiD's loss and its gradient on Gaussians, where both are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.distill.objectives import DistributionMatching, Noising, Sid
from dmd2_jax.distill.objectives.distribution_matching import NOISING
from tests.distill.objectives import gaussians


def samples(b: int):
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (b, 1)), jax.random.normal(keys[1], (b, 1))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_value_and_gradient_are_those_of_the_equation(alpha: float) -> None:
    x_0, noise = samples(6)
    level = np.arange(6) * 4
    draws = {NOISING: Noising(jnp.asarray(level), noise)}
    one = Sid(alpha=alpha)
    value, gradient = jax.value_and_grad(
        lambda x: one.value(gaussians.view(x, draws, one), draws)[0]
    )(x_0)

    # By hand, in float64, for one value a sample: T = a x_t, C = c x_t, x_t = alpha x + sigma eps.
    t = gaussians.SCHEDULE.levels[level].astype(np.float64)
    x, eps = np.float64(x_0[:, 0]), np.float64(noise[:, 0])
    signal = 1.0 / (1.0 + t)
    x_t = signal * x + t / (1.0 + t) * eps
    a = gaussians.x0_factor(gaussians.TEACHER_STD, t)
    c = gaussians.x0_factor(gaussians.STUDENT_STD, t)
    difference, rest, weight = (a - c) * x_t, c * x_t - x, 1.0 / np.abs(x - a * x_t)
    expected = weight * ((1.0 - alpha) * difference**2 + difference * rest)
    slope = 2.0 * (1.0 - alpha) * difference * (a - c) * signal
    slope += (a - c) * signal * rest + difference * (c * signal - 1.0)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], weight * slope / 6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
@pytest.mark.parametrize("std", [0.8, 1.25])
def test_a_student_goes_to_the_teachers_spread(alpha: float, std: float) -> None:
    """With the critic of its own samples, the loss falls as the spread nears the teacher's, 1."""
    z, noise = samples(4096)
    draws = {NOISING: Noising(jnp.arange(4096) % 30, noise)}
    one = Sid(alpha=alpha)
    critic = gaussians.Network(gaussians.DENOISER, {"std": std})

    def loss(s):
        return one.value(gaussians.view(s * z, draws, one, critic=critic), draws)[0]

    assert np.sign(jax.grad(loss)(std)) == np.sign(std - 1.0)


def test_beside_distribution_matching_it_adds_its_gradient() -> None:
    """The mix: one noising, and no gradient of distribution matching through the networks."""
    x_0, noise = samples(6)
    draws = {NOISING: Noising(jnp.arange(6), noise)}
    both = (DistributionMatching(), Sid())

    def gradient(*ones):
        def loss(x):
            turn = gaussians.view(x, draws, *both)
            return sum(one.value(turn, draws)[0] for one in ones)

        return jax.grad(loss)(x_0)

    np.testing.assert_allclose(
        gradient(*both), gradient(both[0]) + gradient(both[1]), rtol=1e-5, atol=1e-7
    )
    alone = jax.grad(lambda x: both[0].value(gaussians.view(x, draws, both[0]), draws)[0])(x_0)
    np.testing.assert_array_equal(gradient(both[0]), alone)
