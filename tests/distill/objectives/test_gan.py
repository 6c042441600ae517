"""The GAN's switches: its losses, approximate R1, and whose features the discriminator reads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.distill import Samples, critic_turn, draw_cycle
from dmd2_jax.distill.objectives import CriticGan, GeneratorGan, Network, Noising, dmd2
from dmd2_jax.losses import (
    approximate_r1_loss,
    discriminator_adversarial_loss,
    generator_adversarial_loss,
)
from tests.distill import toy
from tests.distill.objectives import gaussians
from tests.distill.test_cycle import TEACHER, make_batch, make_state

LOGITS = jnp.asarray([-2.0, 0.5, 3.0])


def test_hinge_losses_are_those_of_the_equations() -> None:
    loss, metrics = generator_adversarial_loss(LOGITS, kind="hinge")
    assert float(loss) == -0.5 == float(metrics["gan_generator_loss"])
    loss, _ = discriminator_adversarial_loss(LOGITS, -LOGITS, kind="hinge")
    # real: max(0, 1 - D) of (-2, .5, 3) is (3, .5, 0); fake: max(0, 1 + D) of (2, -.5, -3) too
    np.testing.assert_allclose(loss, 2.0 * 3.5 / 3.0, rtol=1e-6)
    with pytest.raises(Refused, match="gan_loss='wgan' is unknown"):
        generator_adversarial_loss(LOGITS, kind="wgan")
    with pytest.raises(Refused, match="gan_loss='wgan' is unknown"):
        CriticGan(loss="wgan")
    with pytest.raises(Refused, match="gan_r1_samples='fake' is unknown"):
        CriticGan(r1_samples="fake")


def test_approximate_r1_is_the_mean_square_of_the_change() -> None:
    loss, _ = approximate_r1_loss(LOGITS, LOGITS + jnp.asarray([1.0, 0.0, -2.0]))
    np.testing.assert_allclose(loss, 5.0 / 3.0, rtol=1e-6)


@pytest.mark.parametrize("samples", ["real", "both"])
def test_r1_of_a_linear_discriminator_is_its_slope(samples: str) -> None:
    """D = 3 x_t: a step of sigma eps changes it by 3 sigma eps, of real samples and of fakes."""
    b, keys = 5, jax.random.split(jax.random.key(0), 6)
    fake, real, noise, other, eps, eps_fake = (jax.random.normal(key, (b, 1)) for key in keys)
    draws = {"fake": Noising(jnp.arange(b), noise), "real": Noising(jnp.arange(b), other)}
    draws |= {"r1_real": eps, "r1_fake": eps_fake}

    def value(one):
        turn = gaussians.view(fake, draws, one, real=real, head=lambda f: 3.0 * f[0][:, 0])
        return one.value(turn, draws)

    without, _ = value(CriticGan())
    loss, metrics = value(CriticGan(r1_weight=7.0, r1_sigma=0.2, r1_samples=samples))
    moved = np.concatenate([eps, eps_fake]) if samples == "both" else np.asarray(eps)
    expected = np.mean(np.square(3.0 * 0.2 * moved))
    np.testing.assert_allclose(metrics["gan_r1_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(loss - without, 7.0 * expected, rtol=1e-4)


def test_the_students_gan_passes_through_the_features_that_are_read() -> None:
    """A head that adds up the features: the gradient is the reading network's own factor."""
    network = gaussians.DENOISER._replace(
        features=lambda params, x_t, t, cond: (params["std"] * x_t,)
    )
    x_0, one = jnp.ones((4, 1)), GeneratorGan(loss="hinge")
    draws = {"gan": Noising(jnp.arange(4), jnp.zeros((4, 1)))}
    signal = gaussians.SCHEDULE.alpha(gaussians.SCHEDULE.levels[:4])

    def gradient(whose):
        def loss(x):
            turn = gaussians.view(
                x, draws, one,
                head=lambda features: features[0][:, 0],
                gan_features=whose,
                critic=Network(network, {"std": 2.0}),
                teacher=Network(network, {"std": 5.0}),
            )  # fmt: skip
            return one.value(turn, draws)[0]

        return jax.grad(loss)(x_0)[:, 0]

    np.testing.assert_allclose(gradient("critic"), -2.0 * signal / 4, rtol=1e-6)
    np.testing.assert_allclose(gradient("teacher"), -5.0 * signal / 4, rtol=1e-6)


def test_a_head_on_the_teacher_leaves_the_critic_to_denoising() -> None:
    it = toy.config(batch_size=8, critic_turns=1)
    with_teacher = dataclasses.replace(it, gan_features="teacher")
    state, batch = make_state(it), make_batch(it)
    draws = draw_cycle(jax.random.key(3), it, toy.SCHEDULE)
    fake, real = jax.tree.map(
        lambda x: x[0], (Samples(batch.real.x_0, batch.fake_cond), batch.real)
    )
    critic_draws = jax.tree.map(lambda x: x[0], draws.critic)

    def after(config, state):
        settings = {"players": toy.players(), "config": config, "teacher_params": TEACHER}
        turn = jax.jit(functools.partial(critic_turn, **settings))
        return turn(state, fake, real, critic_draws)[0]

    no_gan = dmd2(gan_generator_weight=None, gan_critic_weight=None, denoising_weight="eps")
    alone = after(dataclasses.replace(it, objectives=no_gan), state._replace(discriminator=None))
    from_teacher, from_critic = after(with_teacher, state), after(it, state)
    for name, leaf in alone.critic.params.items():
        np.testing.assert_allclose(from_teacher.critic.params[name], leaf, rtol=1e-5, atol=1e-7)
    assert np.any(np.abs(from_critic.critic.params["in"] - alone.critic.params["in"]) > 1e-3)
    for before, turn in ((state, from_teacher), (from_teacher, from_critic)):
        assert np.any(before.discriminator.params["w"] != turn.discriminator.params["w"])


def test_the_config_refuses_features_of_nobody() -> None:
    with pytest.raises(Refused, match="gan_features='generator', expected one of"):
        toy.config(gan_features="generator")
