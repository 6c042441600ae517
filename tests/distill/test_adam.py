"""Adam's moments in bfloat16: the roundings' statistics, and the float32 twin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dmd2_jax.distill import DistillConfig, Player, dmd2
from dmd2_jax.distill.adam import round_stochastically, scale_by_adam
from dmd2_jax.distill.state import adamw_direction, update_players

CONFIG = DistillConfig(
    sample_shape=(1,),
    batch_size=1,
    objectives=dmd2(gan_generator_weight=None, gan_critic_weight=None),
)
HALF = dataclasses.replace(CONFIG, moment_dtype="bfloat16")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_round_stochastically_goes_up_as_often_as_its_place_says(sign: float) -> None:
    # bfloat16 has 1 and 1 + 1/128 as neighbours; this lies 3/8 of the way.
    x = np.float32(sign * (1 + 3 / 8 / 128))
    every = jnp.arange(2**16, dtype=jnp.uint16)
    rounded = np.asarray(round_stochastically(jnp.full(2**16, x), every), np.float64)
    values, counts = np.unique(sign * rounded, return_counts=True)
    np.testing.assert_array_equal(values, [1, 1 + 1 / 128])
    np.testing.assert_array_equal(counts, [2**16 * 5 // 8, 2**16 * 3 // 8])


def test_round_stochastically_keeps_what_bfloat16_holds() -> None:
    x = jnp.array([0.0, -0.0, 1.5, -3e38, 1e-30, jnp.inf, -jnp.inf, jnp.nan], jnp.bfloat16)
    rounded = round_stochastically(x.astype(jnp.float32), jnp.full(x.shape, 2**16 - 1, jnp.uint16))
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), np.asarray(x, np.float32))


def test_scale_by_adam_in_float32_is_optaxs() -> None:
    params = {"a": jnp.ones((3, 2))}
    ours, theirs = scale_by_adam(CONFIG), optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    got = ours.update(params, ours.init(params))
    jax.tree.map(np.testing.assert_array_equal, got, theirs.update(params, theirs.init(params)))


def test_scale_by_adam_in_bfloat16_starts_as_float32_does() -> None:
    # The first direction sees no rounded moment.
    gradient = {"a": jnp.linspace(-1, 1, 64), "b": jnp.linspace(1, 9, 8)}
    half, full = scale_by_adam(HALF), scale_by_adam(CONFIG)
    got, state = half.update(gradient, half.init(gradient))
    expected, _ = full.update(gradient, full.init(gradient))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.mu, state.nu))} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_scale_by_adam_in_bfloat16_lets_the_second_moment_decay() -> None:
    # 1,000 updates without gradient: v falls to 0.999^1000 = 0.3677 of itself. Rounded to nearest
    # it would not move at all, as each update is below half a unit of its last place.
    assert jnp.bfloat16(0.999 * jnp.float32(jnp.bfloat16(0.25))) == 0.25
    optimizer = scale_by_adam(HALF)
    zero = jnp.zeros(4096)
    state = optimizer.init(zero)._replace(nu=jnp.full(4096, 0.25, jnp.bfloat16))
    state = jax.jit(
        lambda state: jax.lax.fori_loop(
            0, 1000, lambda _, state: optimizer.update(zero, state)[1], state
        )
    )(state)
    v = np.asarray(state.nu, np.float64) / 0.25
    assert v.mean() == pytest.approx(0.999**1000, rel=0.005)
    assert v.std() / v.mean() < 0.1


def regression_loss(config: DistillConfig) -> float:
    """The last loss of a noisy linear regression of 64 weights, trained by `update_players`."""
    true = jnp.linspace(-1, 1, 64)

    def loss(weights: jax.Array, key: jax.Array) -> jax.Array:
        x = jax.random.normal(key, (32, 64))
        noise = jax.random.normal(jax.random.fold_in(key, 1), (32,))
        return jnp.mean((x @ (weights - true) - 0.3 * noise) ** 2)

    def step(player: Player, i: jax.Array) -> tuple[Player, None]:
        gradient = jax.grad(loss)(player.params, jax.random.key(i))
        lr = 0.01 * jnp.minimum(1.0, 2 - i / 1000)
        (player,), _, _ = update_players((player,), (gradient,), lr, config)
        return player, None

    start = jnp.zeros(64)
    player = Player(start, adamw_direction(config).init(start))
    player, _ = jax.jit(lambda p: jax.lax.scan(step, p, jnp.arange(2000)))(player)
    return float(jnp.sum((player.params - true) ** 2))  # the loss above that of the noise


def test_update_players_in_bfloat16_converges_as_in_float32() -> None:
    still = dataclasses.replace(CONFIG, weight_decay=0.0)
    full = regression_loss(still)
    half = regression_loss(dataclasses.replace(still, moment_dtype="bfloat16"))
    assert full < 0.002  # from 22
    assert half == pytest.approx(full, rel=0.1)
