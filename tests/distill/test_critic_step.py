"""A critic that is told the student's step: it learns each step's samples, not their mixture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.distill import Players, Samples, critic_turn, draw_cycle, generator_turn, init_state
from dmd2_jax.networks.step_embedding import STEPS, at_step, with_steps
from dmd2_jax.typing import Array, Params
from tests.distill import toy

PARAMS = {
    "params": {
        "net": {"emb": {"linear_2": {"kernel": jnp.ones((2, 3)), "bias": jnp.arange(3.0)}}},
        "other_linear_2": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)},
    },
    "constants": {"table": jnp.ones(4)},
}


def test_an_embedding_is_added_to_the_bias_of_its_layer_alone() -> None:
    told = with_steps(PARAMS, "emb.linear_2", 2)
    assert jax.tree.map(jnp.shape, told[STEPS]) == {"net/emb/linear_2/bias": (2, 3)}
    told[STEPS] = jax.tree.map(lambda table: table.at[1].set([5.0, 6.0, 7.0]), told[STEPS])
    first, second = at_step(told, 0), at_step(told, jnp.int32(1))
    assert jax.tree.structure(first) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, first, PARAMS)
    expected = jax.tree.map(jnp.array, PARAMS)
    expected["params"]["net"]["emb"]["linear_2"]["bias"] = jnp.asarray([5.0, 7.0, 9.0])
    jax.tree.map(np.testing.assert_array_equal, second, expected)
    with pytest.raises(Refused, match="no layer of the network is called 'linear_3'"):
        with_steps(PARAMS, "linear_3", 2)


def constant(params: Params, x_t: Array, t: Array, cond: Array) -> Array:
    return jnp.broadcast_to(params["mean"], x_t.shape)


def told_mean(params: Params, step: Array) -> Params:
    return {"mean": params["mean"] + params["steps"][step]}


@pytest.mark.parametrize("told", [True, False])
def test_a_critic_learns_the_mean_of_each_step_or_that_of_all(told: bool) -> None:
    """Samples of step 0 are -1, of step 1 are 2, in turns; the critic is a constant."""
    net = Denoiser(constant, constant, constant, toy.SCHEDULE, jnp.zeros_like)
    players = Players(net, critic_step=told_mean if told else None)
    it = toy.config(
        batch_size=2, student_times=(8.0, 2.0), denoising_weight="x0", critic_turns=1,
        critic_lr=0.02, b1=0.0, weight_decay=0.0, ema_decays=(),
        gan_generator_weight=None, gan_critic_weight=None,
    )  # fmt: skip
    critic = {"mean": jnp.float32(0.0)} | ({"steps": jnp.zeros(2)} if told else {})
    state = init_state(it, generator={"mean": jnp.float32(0.0)}, critic=critic)
    draws = jax.tree.map(lambda x: x[0], draw_cycle(jax.random.key(0), it, toy.SCHEDULE).critic)
    turn = functools.partial(critic_turn, real=None, draws=draws, players=players, config=it)

    def one(state, step):
        x_0 = jnp.where(step == 0, -1.0, 2.0) * jnp.ones((2, *toy.SHAPE))
        return turn(state, Samples(x_0, jnp.zeros(2)), student_step=step)[0], None

    state, _ = jax.jit(lambda state: jax.lax.scan(one, state, jnp.arange(600) % 2))(state)
    if told:
        means = [told_mean(state.critic.params, step)["mean"] for step in (0, 1)]
        np.testing.assert_allclose(means, [-1.0, 2.0], atol=0.05)
    else:
        np.testing.assert_allclose(state.critic.params["mean"], 0.5, atol=0.1)


def test_the_generator_asks_the_critic_of_its_step() -> None:
    """The gradient of distribution matching is the one with the parameters of that step."""
    it = toy.config(
        student_times=(8.0, 2.0), gan_generator_weight=None, gan_critic_weight=None, batch_size=4
    )
    critic = toy.init_mlp(2)
    state = init_state(it, generator=toy.init_mlp(1), critic=critic)
    draws = draw_cycle(jax.random.key(1), it, toy.SCHEDULE)
    rollout = jax.tree.map(lambda x: x[0], draws.rollouts)._replace(step=jnp.int32(1))
    plain = toy.players()._replace(discriminator=None)

    def after(players, state):
        return generator_turn(
            state, toy.init_mlp(0), jnp.zeros(4), rollout, draws.generator,
            players=players, config=it,
        )[0]  # fmt: skip

    def shifted(params, step):
        return {**params, "bias": params["bias"] + step}

    moved = state._replace(critic=state.critic._replace(params=shifted(critic, 1)))
    by_step = after(plain._replace(critic_step=shifted), state)
    by_hand, unmoved = after(plain, moved), after(plain, state)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        by_step.generator.params,
        by_hand.generator.params,
    )
    assert np.any(by_step.generator.params["out"] != unmoved.generator.params["out"])
