"""Guidance scales as an input: each sample has its own, which all players take of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion import schedules
from dmd2_jax.diffusion.guidance import Guided, guided_by_cond, guided_x0, told_scale
from dmd2_jax.distill import (
    CycleBatch,
    DistillConfig,
    Players,
    dmd2,
    draw_cycle,
    init_state,
    make_cycle,
    objectives,
)
from tests.distill import toy

RANGE = {"guidance_range": (1.5, 4.0)}


def test_scales_are_uniform_in_their_range_and_move_no_other_draw() -> None:
    it = toy.config(batch_size=500, **RANGE)
    draws = draw_cycle(jax.random.key(1), it, toy.SCHEDULE)
    plain = draw_cycle(jax.random.key(1), toy.config(batch_size=500), toy.SCHEDULE)
    assert plain.scales is None
    jax.tree.map(np.testing.assert_array_equal, draws._replace(scales=None), plain)
    for scale in draws.scales:
        assert scale.shape == (3, 500) and 1.5 <= scale.min() < 1.55 and 3.95 < scale.max() <= 4.0
        np.testing.assert_allclose(np.mean(scale), 2.75, atol=0.08)
    assert np.all(draws.scales.fake != draws.scales.real)


def test_each_sample_is_guided_and_told_its_own_scale() -> None:
    net, params = toy.denoiser(), toy.init_mlp(0)
    x_t = jax.random.normal(jax.random.key(0), (4, *toy.SHAPE))
    t, cond, scale = jnp.full(4, 2.0), jnp.arange(4.0), jnp.asarray([0.0, 1.0, 2.5, 4.0])
    guided = guided_by_cond(net).x0(params, x_t, t, Guided(cond, scale))
    one_by_one = [
        guided_x0(net, float(scale[i]))(params, x_t[i : i + 1], t[:1], cond[i : i + 1])
        for i in range(4)
    ]
    np.testing.assert_allclose(guided, np.concatenate(one_by_one), rtol=1e-5, atol=1e-6)
    told = told_scale(net, toy.told)
    x_0, features = told.x0_and_features(params, x_t, t, Guided(cond, scale))
    expected = net.x0_and_features(params, x_t, t, cond + 0.2 * scale)
    np.testing.assert_array_equal(x_0, expected[0])
    np.testing.assert_array_equal(features[0], expected[1][0])
    null = told.null_cond(Guided(cond, scale))
    np.testing.assert_array_equal(null.scale, scale)
    assert not np.any(null.cond)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_range": (4.0, 1.0)}, "guidance_range=(4.0, 1.0), expected (low, high)"),
        ({"guidance_range": (1.0,)}, "guidance_range=(1.0,), expected (low, high)"),
        ({"guidance": 3.0} | RANGE, "'distribution_matching' with guidance=3.0"),
        ({"regression_weight": 0.25} | RANGE, "pairs that the teacher made at one scale"),
        (
            {"objectives": (objectives.GuidanceAugmentation(guidance=3.0),)} | RANGE,
            "'guidance_augmentation' with guidance=3.0",
        ),
    ],
)
def test_a_range_is_refused_beside_a_scale_for_all(changes: dict, message: str) -> None:
    with pytest.raises(Refused) as refused:
        toy.config(**changes)
    assert message in str(refused.value)


S = 0.5  # standard deviation of the data


def posterior_mean(x_t, t, mean):
    """x_0 of N(mean, S^2) from x_0 + t eps."""
    t = t[:, None]
    return (S**2 * x_t + t**2 * mean) / (S**2 + t**2)


def learned_factor(params, scale):
    return (params["a"] + params["b"] * scale)[:, None]


def test_a_student_learns_the_guided_distribution_of_every_scale() -> None:
    """Guided by w from N(0, S^2) to N(c, S^2), the teacher's samples are those of N(w c, S^2)."""
    schedule = schedules.edm(sigma_min=0.05, sigma_max=5.0)

    def teacher(params, x_t, t, cond):
        return posterior_mean(x_t, t, cond)

    def critic(params, x_t, t, cond):
        c, scale = cond
        return posterior_mean(x_t, t, learned_factor(params, scale) * c)

    def generator(params, x_t, t, cond):
        c, scale = cond
        return learned_factor(params, scale) * c + S * x_t / 5.0

    def net(x0):
        return Denoiser(x0, x0, x0, schedule, jnp.zeros_like)

    def tell(params, cond, scale):
        return params, (cond, scale)

    told = (told_scale(net(it), tell) for it in (generator, critic))
    players = Players(guided_by_cond(net(teacher)), *told)
    it = DistillConfig(
        (2,), batch_size=64, critic_turns=2, student_times=(5.0,), guidance_range=(1.0, 4.0),
        objectives=dmd2(gan_generator_weight=None, gan_critic_weight=None),
        generator_lr=2e-2, critic_lr=5e-2, warmup=0, b1=0.0, weight_decay=0.0,
        lr_schedule="cosine", total_turns=1600, ema_decays=(),
    )  # fmt: skip
    begin = {"a": jnp.float32(1.0), "b": jnp.float32(0.0)}
    state = init_state(it, generator=begin, critic=begin)
    cycle = make_cycle(players, it)
    for i in range(800):
        key = jax.random.key(i)
        batch = CycleBatch(fake_cond=jax.random.normal(key, (2, 64, 2)))
        state, _ = cycle(state, {}, batch, key)
    for params in (state.generator.params, state.critic.params):
        factors = [params["a"] + params["b"] * w for w in (1.0, 2.5, 4.0)]
        np.testing.assert_allclose(factors, [1.0, 2.5, 4.0], atol=0.15)
