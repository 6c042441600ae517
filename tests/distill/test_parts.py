"""Config, draws, rollout, optimiser, averages: the parts of the cycle one by one."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.diffusion import schedules
from dmd2_jax.distill import backward_simulation, draw_cycle, generate, init_state, make_cycle
from dmd2_jax.distill.objectives import Levels, level_bounds
from dmd2_jax.distill.rollout import check_student_times
from dmd2_jax.distill.state import (
    Player,
    adamw_direction,
    learning_rate_factor,
    update_ema,
    update_players,
)
from tests.distill import toy

TIMES = (8.0, 3.0, 1.0, 0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"critic_turns": 0},
            r"critic_turns=0, expected at least 1 \(K of TTUR.*; correct critic_t",
        ),
        ({"batch_size": 0}, "batch_size=0, expected at least 1; correct batch_size"),
        ({"student_times": (1.0, 2.0)}, "strictly decreasing"),
        ({"student_times": (2.0, 2.0)}, "strictly decreasing"),
        ({"student_times": ()}, "strictly decreasing"),
        ({"dm_range": (0.5, 0.5)}, "0 <= low < high <= 1"),
        ({"gan_range": (0.0, 1.5)}, "0 <= low < high <= 1"),
        ({"gan_critic_weight": None}, "must both be numbers or both be None"),
        (
            {"dm_weight": None, "gan_generator_weight": None, "gan_critic_weight": None},
            "nothing trains the generator",
        ),
        ({"train_critic": False}, "without a critic"),
        ({"lr_schedule": "linear"}, r"lr_schedule='linear', expected one of \['const"),
        ({"moment_dtype": "float16"}, r"moment_dtype='float16', expected one of \['bf"),
        ({"lr_schedule": "cosine", "total_turns": 0}, "total_turns=0 to be positive"),
    ],
)
def test_config_refuses_contradictions(changes, message):
    with pytest.raises(ValueError, match=message):
        toy.config(**changes)


def test_init_state_asks_for_the_discriminator():
    with pytest.raises(ValueError, match="discriminator parameters are missing"):
        init_state(toy.config(), generator=toy.init_mlp(0), critic=toy.init_mlp(0))


@pytest.mark.parametrize(
    ("fractions", "n", "expected"),
    [((0.02, 0.98), 1000, (20, 981)), ((0.0, 1.0), 1000, (0, 1000)), ((0.1, 0.5), 50, (5, 26))],
)
def test_level_bounds_include_the_last_level_of_the_range(fractions, n, expected):
    assert level_bounds(fractions, n, last=True) == expected


@pytest.mark.parametrize("n", [7, 250, 1000])
def test_level_bounds_without_the_last_level_count_what_the_original_draws(n):
    for most in range(1, n + 1):
        assert level_bounds((0.0, most / n), n, last=False) == (0, most)


def test_level_bounds_refuse_a_range_without_levels():
    with pytest.raises(ValueError, match="holds none of the schedule's 50 levels"):
        level_bounds((0.5, 0.51), 50, last=False)


@pytest.mark.parametrize(("share", "number"), [(150 / 250, 30), (400 / 1000, 20), (1.0, 50)])
def test_draw_cycle_takes_dm_levels_to_the_end_and_gan_levels_before_it(share, number):
    config = toy.config(batch_size=2048, dm_range=(0.0, share), gan_range=(0.0, share))
    draws = draw_cycle(jax.random.key(0), config, toy.SCHEDULE)
    counts = {name: len(np.unique(draws.critic[name].level)) for name in ("real", "fake")}
    assert counts == {"real": number, "fake": number}
    assert len(np.unique(draws.generator["gan"].level)) == number
    assert len(np.unique(draws.generator["dm"].level)) == min(number + 1, 50)


def test_draw_cycle_keeps_indices_in_range_and_steps_within_the_student():
    config = toy.config(batch_size=512, dm_range=(0.2, 0.6), student_times=TIMES)
    draws = draw_cycle(jax.random.key(0), config, toy.SCHEDULE)
    assert int(draws.generator["dm"].level.min()) == 10
    assert int(draws.generator["dm"].level.max()) == 30
    assert int(draws.critic["denoising"].level.min()) == 0
    assert int(draws.critic["denoising"].level.max()) == 49
    assert set(np.asarray(draws.rollouts.step).tolist()) <= {0, 1, 2, 3}
    np.testing.assert_allclose(jnp.std(draws.rollouts.noise), 1.0, atol=0.02)


@pytest.mark.parametrize(
    ("times", "quantile"),
    [
        ("logit_normal:-0.5:0.8", lambda p: 1 / (1 + np.exp(0.5 - 0.8 * NormalDist().inv_cdf(p)))),
        ("shifted:3", lambda p: 3 * p / (1 + 2 * p)),
        ("polynomial:2", lambda p: p**2),
    ],
)
def test_levels_have_the_distribution_that_is_asked_for(times, quantile):
    schedule, (low, high) = schedules.rectified_flow(), (0.2, 0.6)
    draw = Levels((low, high), last=False, times=times).draw(
        jax.random.key(0), "x", (20_000,), (), schedule
    )
    level = np.sort(np.asarray(draw.level))
    assert level[0] >= 200
    assert level[-1] <= 599
    for p in (0.1, 0.5, 0.9):
        # Three standard errors of a quantile are 0.01 of a uniform share at most.
        below, above = (low + (high - low) * quantile(q) for q in (p - 0.01, p + 0.01))
        assert 1000 * below - 1 <= level[int(p * len(level))] <= 1000 * above


def test_dm_and_critic_draw_their_own_distributions_and_others_stay_as_they_were():
    key, config = jax.random.key(0), toy.config(batch_size=512)
    before = draw_cycle(key, config, toy.SCHEDULE)
    changes = {"dm_times": "polynomial:9", "critic_times": "shifted:50"}
    after = draw_cycle(key, toy.config(batch_size=512, **changes), toy.SCHEDULE)
    assert after.generator["dm"].level.mean() < 0.4 * before.generator["dm"].level.mean()
    assert after.critic["denoising"].level.mean() > 1.5 * before.critic["denoising"].level.mean()
    for turn in ("generator", "critic"):
        for name in ("gan",) if turn == "generator" else ("real", "fake"):
            pair = (getattr(it, turn)[name].level for it in (before, after))
            np.testing.assert_array_equal(*pair)
    np.testing.assert_array_equal(before.generator["dm"].noise, after.generator["dm"].noise)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dm_times": "shifted:2", "dm_weight": None}, "dm_times=shifted:2 of an objective"),
        ({"critic_times": "shifted:2", "dm_weight": None, "train_critic": False}, "critic_times"),
        ({"dm_times": "shifted"}, "times='shifted', expected uniform, logit_normal"),
    ],
)
def test_times_of_no_objective_or_distribution_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        toy.config(**changes)


def test_draw_cycle_draws_no_step_before_the_first_trained_one():
    config = toy.config(student_times=(8.0, 2.0, 0.5, 0.1), critic_turns=64, first_trained_step=2)
    steps = draw_cycle(jax.random.key(0), config, toy.SCHEDULE).rollouts.step
    assert set(np.asarray(steps).tolist()) == {2, 3}


@pytest.mark.parametrize("step", [-1, 2])
def test_a_first_trained_step_that_the_student_lacks_is_refused(step):
    with pytest.raises(ValueError, match=rf"first_trained_step={step} must be .* 0\.\.1"):
        toy.config(student_times=(8.0, 2.0), first_trained_step=step)


def test_draw_cycle_of_one_loss_does_not_depend_on_the_others():
    key = jax.random.key(3)
    with_gan = draw_cycle(key, toy.config(), toy.SCHEDULE)
    without = draw_cycle(
        key, toy.config(gan_generator_weight=None, gan_critic_weight=None), toy.SCHEDULE
    )
    np.testing.assert_array_equal(with_gan.generator["dm"].noise, without.generator["dm"].noise)
    levels = [draws.critic["denoising"].level for draws in (with_gan, without)]
    np.testing.assert_array_equal(*levels)
    assert set(without.generator) == {"dm"} and set(without.critic) == {"denoising"}


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_backward_simulation_equals_python_loop(step):
    model, params = toy.denoiser(), toy.init_mlp(5)
    noise = jax.random.normal(jax.random.key(1), (len(TIMES), 4, *toy.SHAPE))
    cond = jnp.arange(4.0)
    x_t = noise[0]
    for i in range(step):
        x_0 = model.x0(params, x_t, jnp.full((4,), TIMES[i]), cond)
        t = jnp.float32(TIMES[i + 1])
        x_t = toy.SCHEDULE.alpha(t) * x_0 + toy.SCHEDULE.sigma(t) * noise[i + 1]
    got = jax.jit(
        lambda p, s: backward_simulation(model, p, noise, s, cond, times=TIMES),
    )(params, step)
    np.testing.assert_allclose(got, x_t, rtol=1e-5, atol=1e-6)


def test_backward_simulation_stops_the_gradient():
    noise = jax.random.normal(jax.random.key(1), (len(TIMES), 4, *toy.SHAPE))

    def total(params):
        x_t = backward_simulation(toy.denoiser(), params, noise, 3, jnp.ones(4), times=TIMES)
        return jnp.sum(x_t)

    gradient = jax.grad(total)(toy.init_mlp(5))
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(gradient))


def test_generate_ends_with_the_last_step():
    model, params = toy.denoiser(), toy.init_mlp(5)
    noise = jax.random.normal(jax.random.key(1), (2, 4, *toy.SHAPE))
    x_0 = model.x0(params, noise[0], jnp.full((4,), 8.0), jnp.ones(4))
    t = jnp.float32(1.0)
    x_t = toy.SCHEDULE.alpha(t) * x_0 + toy.SCHEDULE.sigma(t) * noise[1]
    expected = model.x0(params, x_t, jnp.full((4,), 1.0), jnp.ones(4))
    got = generate(model, params, noise, jnp.ones(4), times=(8.0, 1.0))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "times", "message"),
    [
        (
            (4, 2, 2, 1),
            (8.0,),
            r"shape \(4, 2, 2, 1\), expected \[s, b, ...\] with s=1.*noise\[None",
        ),
        ((3, 4, 2, 2, 1), (8.0, 1.0), r"with s=2"),
        (
            (2, 4, 2, 2, 1),
            (999.0, 499.0),
            r"times has \[999.0, 499.0\], expected times within .*0.01, 8\]",
        ),
    ],
)
def test_generate_refuses_noise_without_the_steps_and_times_of_another_scale(shape, times, message):
    with pytest.raises(Refused, match=message):
        generate(toy.denoiser(), toy.init_mlp(5), jnp.zeros(shape), jnp.ones(4), times=times)


@pytest.mark.parametrize(
    ("schedule", "wrong", "example"),
    [
        (schedules.edm(), (999, 749), r"\(80,\), four are for example \(80, 17.5, 2.5, 0.168\)"),
        (
            schedules.discrete_vp(),
            (80.0, 0.8),
            r"\(999,\), four are for example \(999, 749, 499, 249",
        ),
        (
            schedules.rectified_flow(),
            (999,),
            r"\(1,\), four are for example \(1, 0.75, 0.5, 0.25\)",
        ),
    ],
)
def test_student_times_of_another_family_are_refused_with_an_example(schedule, wrong, example):
    with pytest.raises(Refused, match=example):
        check_student_times(wrong, schedule)


def test_make_cycle_refuses_student_times_beyond_the_schedule():
    with pytest.raises(Refused, match=r"student_times has \[80.0\], expected times within"):
        make_cycle(toy.players(), toy.config(student_times=(80.0,)))


@pytest.mark.parametrize(
    ("changes", "turns", "expected"),
    [
        ({"warmup": 4}, [0, 1, 4, 9], [0.0, 0.25, 1.0, 1.0]),
        ({"warmup": 0}, [0, 7], [1.0, 1.0]),
        (
            {"warmup": 2, "lr_schedule": "cosine", "total_turns": 10},
            [1, 2, 6, 10, 20],
            [0.5, 1.0, 0.5, 0.0, 0.0],
        ),
    ],
)
def test_learning_rate_factor_counts_critic_turns(changes, turns, expected):
    config = toy.config(**changes)
    got = [float(learning_rate_factor(config, jnp.int32(t))) for t in turns]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_update_players_is_adamw_with_joint_clipping():
    config = toy.config(clip_norm=0.5, weight_decay=0.1)
    params = ({"a": jnp.array([1.0, -2.0])}, {"b": jnp.array([3.0])})
    gradients = ({"a": jnp.array([0.3, 0.4])}, {"b": jnp.array([1.2])})  # joint norm 1.3
    optimizer = adamw_direction(config)
    players = tuple(Player(p, optimizer.init(p)) for p in params)
    updated, norm, taken = update_players(players, gradients, jnp.float32(0.01), config)
    np.testing.assert_allclose(norm, 1.3, rtol=1e-6)
    assert bool(taken)
    reference = optax.adamw(0.01, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
    clipped = jax.tree.map(lambda g: g * 0.5 / 1.3, gradients)
    direction, _ = reference.update(clipped, reference.init(params), params)
    expected = optax.apply_updates(params, direction)
    for got, want in zip(updated, expected, strict=True):
        np.testing.assert_allclose(
            jax.tree.leaves(got.params)[0], jax.tree.leaves(want)[0], rtol=1e-6
        )


def test_update_ema_is_the_average_by_hand():
    config = toy.config(ema_decays=(0.9, 0.5), ema_rampup=False)
    ema = ({"p": jnp.array([1.0])}, {"p": jnp.array([1.0])})
    new = update_ema(ema, {"p": jnp.array([3.0])}, jnp.int32(0), config)
    np.testing.assert_allclose([float(e["p"][0]) for e in new], [1.2, 2.0], rtol=1e-6)


def test_update_ema_ramps_up():
    config = toy.config(ema_decays=(0.9,), ema_rampup=True)
    new = update_ema(({"p": jnp.array([0.0])},), {"p": jnp.array([1.0])}, jnp.int32(0), config)
    np.testing.assert_allclose(new[0]["p"][0], 0.9, rtol=1e-6)  # d = 1 / 10
