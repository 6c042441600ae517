"""f-distill: its weights are those of its divergences, and one of them is distribution matching."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.distill.objectives import (
    CriticGan,
    Denoising,
    DistributionMatching,
    FDistill,
    GeneratorGan,
    Noising,
    dmd2,
)
from dmd2_jax.distill.objectives.distribution_matching import NOISING
from tests.distill import toy
from tests.distill.objectives import gaussians

GAN = (GeneratorGan(), Denoising(), CriticGan())
F = {  # f of D_f(p || q) = E_q f(p / q), and f's factor that the normalisation takes away
    "reverse_kl": (lambda r: -np.log(r), 1.0),
    "softened_reverse_kl": (lambda r: (r + 1.0) * np.log((r + 1.0) / (2.0 * r)), 1.0),
    "jensen_shannon": (lambda r: r * np.log(r) - (r + 1.0) * np.log((r + 1.0) / 2.0), 1.0),
    "squared_hellinger": (lambda r: 1.0 - np.sqrt(r), 4.0),
    "forward_kl": (lambda r: r * np.log(r), 1.0),
}


def normal(x, variance):
    return np.exp(-0.5 * x**2 / variance) / np.sqrt(2.0 * np.pi * variance)


@pytest.mark.parametrize("name", F)
def test_weights_make_the_gradient_of_their_divergence(name: str) -> None:
    """d/ds D_f of the noised distributions, by differences, against E h(r) (score's difference)."""
    level, std = 9, gaussians.STUDENT_STD
    t = float(gaussians.SCHEDULE.levels[level])
    alpha, sigma = 1.0 / (1.0 + t), t / (1.0 + t)
    x_t, dx = np.linspace(-9.0, 9.0, 4001, retstep=True)
    p = normal(x_t, (alpha * gaussians.TEACHER_STD) ** 2 + sigma**2)
    f, factor = F[name]

    def divergence(s):
        q = normal(x_t, (alpha * s) ** 2 + sigma**2)
        return np.sum(q * f(p / q)) * dx

    step = 1e-4
    expected = (divergence(std + step) - divergence(std - step)) / (2.0 * step)

    one = FDistill(divergence=name, ratio_range=(1e-9, 1e9), normalized=False)
    draws = {NOISING: Noising(jnp.full(x_t.shape, level), jnp.zeros((*x_t.shape, 1)))}
    turn = gaussians.view(jnp.asarray(x_t[:, None] / alpha, jnp.float32), draws, one)
    h, _ = one.sample_weight(turn)
    data, student = ((alpha * s) ** 2 + sigma**2 for s in (gaussians.TEACHER_STD, std))
    scores = x_t / data - x_t / student  # of the student less the data's
    moved = alpha**2 * std * x_t / student  # E[d x_t / d s | x_t] of x_0 = s z
    q = normal(x_t, student)
    found = np.sum(q * np.asarray(h, np.float64) * scores * moved) * dx
    np.testing.assert_allclose(found, factor * expected, rtol=2e-4)


def test_reverse_kl_is_distribution_matching_bit_for_bit() -> None:
    x_0 = jax.random.normal(jax.random.key(0), (8, 1))
    noise = jax.random.normal(jax.random.key(1), (8, 1))
    draws = {NOISING: Noising(jnp.arange(8), noise)}
    plain, weighted = DistributionMatching(), FDistill(divergence="reverse_kl")

    def gradient(one, **changes):
        one = dataclasses.replace(one, **changes)
        return jax.grad(lambda x: one.value(gaussians.view(x, draws, one), draws)[0])(x_0)

    np.testing.assert_array_equal(gradient(plain), gradient(weighted))
    assert np.any(gradient(plain) != gradient(weighted, divergence="forward_kl"))


def test_ratio_is_clipped_and_weights_have_mean_one() -> None:
    draws = {NOISING: Noising(jnp.zeros(3, jnp.int32), jnp.zeros((3, 1)))}
    one = FDistill(ratio_range=(0.5, 2.0))
    logits = jnp.asarray([-40.0, 0.0, 40.0])
    turn = gaussians.view(jnp.zeros((3, 1)), draws, one, head=lambda features: logits)
    h, metrics = one.sample_weight(turn)
    np.testing.assert_allclose(h, np.array([0.5, 1.0, 2.0]) * 3 / 3.5, rtol=1e-6)
    np.testing.assert_allclose(metrics["f_distill_ratio"], 3.5 / 3, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["f_distill_weight_square"], 5.25 / 3 * (3 / 3.5) ** 2, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("objectives", "changes", "message"),
    [
        ((FDistill(), Denoising()), {}, "a discriminator that no objective of the critic trains"),
        ((FDistill(), DistributionMatching(), *GAN), {}, "set dm_weight=None"),
        ((FDistill(), Denoising(), CriticGan(loss="hinge")), {}, "set gan_loss='softplus'"),
        ((FDistill(), *GAN), {"microbatches": 2}, "normalized=False"),
    ],
)
def test_what_it_cannot_stand_beside_is_refused(objectives, changes, message) -> None:
    with pytest.raises(Refused, match=message):
        dataclasses.replace(toy.config(), objectives=objectives, **changes)
    with pytest.raises(Refused, match="divergence='kl', expected one of"):
        FDistill(divergence="kl")
    with pytest.raises(Refused, match="0 < low < high"):
        FDistill(ratio_range=(0.0, 2.0))


def test_a_name_brings_what_the_config_says_of_distribution_matching() -> None:
    text = "f_distill:divergence=jensen_shannon:ratio_range=0.5..3:weight=2"
    given = {"dm_weight": None, "guidance": 3.0, "dm_times": "shifted:3", "shared_pass": True}
    made = dmd2(**given, objectives=(text,))
    assert made[-1] == FDistill(
        2.0, guidance=3.0, times="shifted:3", divergence="jensen_shannon", ratio_range=(0.5, 3.0)
    )
    assert made[0] == GeneratorGan(noising=NOISING)  # shared_pass: the same noised samples


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f_distil", "did you mean 'f_distill'"),
        ("f_distill:divergance=js", "did you mean 'divergence'"),
        ("f_distill:weight=much", "expected float"),
        ("f_distill:ratio_range=3", "expected tuple"),
        ("f_distill:normalized=1", "expected bool"),
        ("f_distill:guidance=much", "expected float or None"),
    ],
)
def test_names_and_values_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        dmd2(dm_weight=None, objectives=(text,))
