"""What the turns report beside their losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.distill import draw_cycle, run_cycle
from dmd2_jax.distill.health import LEVEL_BINS, average_by_level, sample_statistics
from tests.distill import toy
from tests.distill.test_cycle import TEACHER, make_batch, make_state


def test_average_by_level_splits_the_levels_evenly() -> None:
    level = jnp.arange(50)  # toy.SCHEDULE has 50
    total, number = average_by_level(level.astype(jnp.float32), level, toy.SCHEDULE)
    np.testing.assert_array_equal(number, [10] * LEVEL_BINS)
    np.testing.assert_array_equal(total, [45, 145, 245, 345, 445])


def test_sample_statistics_by_hand() -> None:
    x_0 = jnp.array([[1.0, -1.0], [0.995, 0.5], [0.5, -0.98]])
    got = sample_statistics("real", x_0)
    assert got["real_mean"] == pytest.approx(1.015 / 6, rel=1e-5)
    assert got["real_std"] == pytest.approx(np.std(np.asarray(x_0)), rel=1e-5)
    assert got["real_saturation"] == pytest.approx(0.5)  # three of six: 1, -1 and 0.995


@pytest.fixture(scope="module")
def cycle() -> tuple:
    """A toy cycle's batch, draws, samples of the generator turn and metrics."""
    config = toy.config(normalizer_floor=1.55)
    players, state, batch = toy.players(), make_state(config), make_batch(config)
    draws = draw_cycle(jax.random.key(7), config, toy.SCHEDULE)
    run = jax.jit(functools.partial(run_cycle, players=players, config=config))
    _, metrics = run(state, TEACHER, batch, draws)
    t = jnp.full((config.batch_size,), 8.0)
    cond, noise = batch.fake_cond[0], draws.rollouts.noise[0, 0]
    x_0 = players.generator.x0(state.generator.params, noise, t, cond)
    return state, batch, draws, x_0, jax.device_get(metrics)


def test_cycle_reports_the_dm_gradient_norm_of_every_level(cycle: tuple) -> None:
    state, batch, draws, x_0, metrics = cycle
    model, cond = toy.denoiser(), batch.fake_cond[0]
    t = jnp.asarray(toy.SCHEDULE.levels)[draws.generator["dm"].level]
    a, s = (f(t)[:, None, None, None] for f in (toy.SCHEDULE.alpha, toy.SCHEDULE.sigma))
    x_t = a * x_0 + s * draws.generator["dm"].noise
    teacher, critic = (model.x0(p, x_t, t, cond) for p in (TEACHER, state.critic.params))
    size = np.abs(x_0 - teacher).mean(axis=(1, 2, 3))
    norms = np.sqrt(np.square(critic - teacher).sum(axis=(1, 2, 3))) / np.maximum(size, 1.55)
    total, number = metrics["dm_grad_norm_by_level"]
    bins = np.asarray(draws.generator["dm"].level) * LEVEL_BINS // 50
    expected = [norms[bins == i].sum() for i in range(LEVEL_BINS)]
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(number, np.bincount(bins, minlength=LEVEL_BINS))
    share = metrics["dm_floor_share"]
    assert (share.total, share.number) == ((size < 1.55).sum(), len(size))
    assert 0 < share.total < len(size)  # the floor of this test catches some samples, not all


def test_cycle_reports_the_critic_error_of_every_level(cycle: tuple) -> None:
    _, _, draws, _, metrics = cycle
    total, number = metrics["critic_error_by_level"]
    bins = np.asarray(draws.critic["denoising"].level) * LEVEL_BINS // 50
    np.testing.assert_array_equal(number, np.bincount(bins.ravel(), minlength=LEVEL_BINS))
    # All turns have one batch size, so that the mean of the parts is the mean of the losses.
    assert total.sum() / number.sum() == pytest.approx(metrics["denoising_loss"].mean(), rel=1e-5)


def test_cycle_counts_the_logits_of_all_critic_turns(cycle: tuple) -> None:
    *_, metrics = cycle
    for name in ("logits_real", "logits_fake"):
        expected, _ = np.histogram(metrics[name], bins=20, range=(-5.0, 5.0))
        np.testing.assert_array_equal(metrics[f"{name}_histogram"].counts, expected)


def test_cycle_describes_generated_and_real_samples(cycle: tuple) -> None:
    _, batch, _, x_0, metrics = cycle
    assert metrics["generated_std"] == pytest.approx(float(np.std(x_0)), rel=1e-5)
    expected = np.mean(np.asarray(batch.real.x_0), axis=(1, 2, 3, 4))
    np.testing.assert_allclose(metrics["real_mean"], expected, rtol=1e-4, atol=1e-6)


def test_cycle_without_a_loss_reports_nothing_about_it() -> None:
    config = toy.config(dm_weight=None, train_critic=False)
    players, batch = toy.players(), make_batch(config)
    draws = draw_cycle(jax.random.key(7), config, toy.SCHEDULE)
    run = functools.partial(run_cycle, players=players, config=config)
    _, metrics = jax.eval_shape(run, make_state(config), TEACHER, batch, draws)
    absent = {"dm_grad_norm_by_level", "dm_floor_share", "critic_error_by_level"}
    assert not absent & set(metrics)
    assert "logits_real_histogram" in metrics
