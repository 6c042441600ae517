"""Decoupled DMD on Gaussians whose mean is the condition: what guidance adds is known by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.distill.objectives import (
    Denoising,
    DistributionMatching,
    GuidanceAugmentation,
    Network,
    Noising,
)
from tests.distill import toy
from tests.distill.objectives import gaussians

W, B = 4.0, 6
KEYS = jax.random.split(jax.random.key(0), 3)
X_0, NOISE = (jax.random.normal(key, (B, 1)) for key in KEYS[:2])
MEAN = jax.random.normal(KEYS[2], (B,))


def gradient(one, name, level, **changes):
    draws = {name: Noising(level, NOISE)}

    def loss(x):
        return one.value(gaussians.view(x, draws, one, cond=MEAN, **changes), draws)[0]

    return B * jax.grad(loss)(X_0)[:, 0]  # of each sample


def test_gradient_is_that_of_the_equation() -> None:
    level = np.arange(B) * 5
    found = gradient(
        GuidanceAugmentation(guidance=W, above_student=False), "guidance", jnp.asarray(level)
    )
    t = gaussians.SCHEDULE.levels[level].astype(np.float64)
    alpha, sigma = 1.0 / (1.0 + t), t / (1.0 + t)
    a, m = gaussians.x0_factor(gaussians.TEACHER_STD, t), np.float64(MEAN)
    x = np.float64(X_0[:, 0])
    c = m + a * (alpha * x + sigma * np.float64(NOISE[:, 0]) - alpha * m)
    expected = -(W - 1.0) * m * (1.0 - a * alpha) / np.abs(x - c)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_with_distribution_matching_it_is_a_guided_teacher() -> None:
    """Of one noise, the sum is (C - (u + w (c - u))) over the normaliser of c."""
    level = jnp.arange(B) * 5
    parts = gradient(DistributionMatching(), "dm", level) + gradient(
        GuidanceAugmentation(guidance=W, above_student=False), "guidance", level
    )
    whole = gradient(DistributionMatching(guidance=W), "dm", level)
    t = gaussians.SCHEDULE.levels[level]
    a, alpha = gaussians.x0_factor(gaussians.TEACHER_STD, t), gaussians.SCHEDULE.alpha(t)
    x_t = alpha * X_0[:, 0] + gaussians.SCHEDULE.sigma(t) * NOISE[:, 0]
    c, u = MEAN + a * (x_t - alpha * MEAN), a * x_t
    normalisers = [jnp.abs(X_0[:, 0] - it) for it in (c, u + W * (c - u))]
    np.testing.assert_allclose(parts * normalisers[0], whole * normalisers[1], rtol=1e-3, atol=1e-5)


def test_difference_is_taken_as_it_is_where_a_teacher_is_guided_in_a_way_of_its_own() -> None:
    """As Qwen-Image's; distribution matching with guidance goes that way."""
    guided = gaussians.DENOISER._replace(guide=lambda cond, uncond, w, x_t: cond + 0.0 * x_t)
    teacher = Network(guided, {"std": gaussians.TEACHER_STD})
    level = jnp.arange(B) * 5

    def gradients(one, name):
        own = gradient(one, name, level)
        return own, gradient(one, name, level, teacher=teacher)

    augmentation = GuidanceAugmentation(guidance=W, above_student=False)
    np.testing.assert_array_equal(*gradients(augmentation, "guidance"))
    plain = gradient(DistributionMatching(), "dm", level)
    own, theirs = gradients(DistributionMatching(guidance=W), "dm")
    np.testing.assert_allclose(theirs, plain, rtol=1e-6)
    assert np.abs(own - plain).max() > 0.01


@pytest.mark.parametrize(("own", "lowest"), [(20, 20), (0, 0), (29, 29)])
def test_levels_are_the_students_own_and_noisier(own: int, lowest: int) -> None:
    drawn = jnp.arange(30)
    turn = gaussians.view(jnp.zeros((30, 1)), {}, t=jnp.full((30,), gaussians.SCHEDULE.levels[own]))
    found = np.asarray(GuidanceAugmentation(guidance=W)._level(turn, drawn))
    assert sorted(set(found.tolist())) == list(range(lowest, 30))
    assert np.all(np.diff(found) >= 0)


def test_guidance_that_is_none_or_twice_is_refused() -> None:
    it = toy.config()
    with pytest.raises(Refused, match="guidance=1, which is none"):
        dataclasses.replace(it, objectives=(GuidanceAugmentation(), Denoising()))
    with pytest.raises(Refused, match="guidance=0, which is the teacher without its condition"):
        dataclasses.replace(it, objectives=(GuidanceAugmentation(guidance=0.0), Denoising()))
    twice = (GuidanceAugmentation(guidance=4.0), DistributionMatching(guidance=2.0), Denoising())
    with pytest.raises(Refused, match="the teacher would be guided twice"):
        dataclasses.replace(it, objectives=twice)
    one = GuidanceAugmentation(guidance=W)
    draws = {"guidance": Noising(jnp.arange(B), NOISE)}
    with pytest.raises(Refused, match="without a condition"):
        one.value(gaussians.view(X_0, draws, one), draws)
