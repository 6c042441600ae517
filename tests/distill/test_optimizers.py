"""Optimisers of the user's own in place of the official AdamW."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.distill import Optimizers, draw_cycle, init_state, make_cycle, run_cycle
from dmd2_jax.distill.state import check_optimizers
from tests.distill import toy
from tests.distill.test_cycle import TEACHER, assert_trees_close, make_batch, make_state

OWN = Optimizers(generator=optax.contrib.muon(0.02), critic=optax.sgd(0.1))
CONFIG = toy.config(critic_turns=2, warmup=4, clip_norm=1e-2, generator_lr=1e-9, critic_lr=1e-9)


def own_state(config, optimizers=OWN):
    return init_state(
        config,
        generator=toy.init_mlp(1),
        critic=toy.init_mlp(2),
        discriminator={"w": jnp.linspace(-1.0, 1.0, 8)},
        optimizers=optimizers,
    )


def gradients(config, state, batch, draws):
    """Return the gradients of a cycle's turns before clipping, by plain SGD of rate 1."""
    plain = Optimizers(optax.sgd(1.0), optax.sgd(1.0))
    loose = dataclasses.replace(config, clip_norm=1e30, warmup=0, critic_turns=1)
    start = init_state(
        loose,
        generator=state.generator.params,
        critic=state.critic.params,
        discriminator=state.discriminator.params,
        optimizers=plain,
    )
    first = jax.tree.map(lambda x: x[:1], (batch.real, batch.fake_cond, draws.critic))
    rollouts = jax.tree.map(lambda x: x[:1], draws.rollouts)
    one, given = batch._replace(real=first[0], fake_cond=first[1]), draws._replace(critic=first[2])
    after, _ = run_cycle(
        start,
        TEACHER,
        one,
        given._replace(rollouts=rollouts),
        players=toy.players(),
        config=loose,
        optimizers=plain,
    )
    return [
        jax.tree.map(jnp.subtract, getattr(start, name).params, getattr(after, name).params)
        for name in ("generator", "critic", "discriminator")
    ]


def test_cycle_adds_an_own_optimizers_updates_times_the_warm_up_alone():
    config = dataclasses.replace(CONFIG, critic_turns=1)
    state, batch = own_state(config), make_batch(config)
    state = state._replace(step=state.step._replace(critic=jnp.int32(1)))  # the factor is 1 / 4
    draws = draw_cycle(jax.random.key(5), config, toy.SCHEDULE)
    after, metrics = run_cycle(
        state, TEACHER, batch, draws, players=toy.players(), config=config, optimizers=OWN
    )
    generator, critic, head = gradients(config, state, batch, draws)

    def expected(tx, player, gradient, norm):
        clipped = jax.tree.map(lambda g: g * min(1.0, config.clip_norm / float(norm)), gradient)
        updates, _ = tx.update(clipped, tx.init(player.params), player.params)
        return jax.tree.map(lambda p, u: p + 0.25 * u, player.params, updates)

    joint = optax.tree.norm((critic, head))
    for name, tx, gradient, norm in (
        ("generator", OWN.generator, generator, optax.tree.norm(generator)),
        ("critic", OWN.critic, critic, joint),
        ("discriminator", OWN.critic, head, joint),
    ):
        wanted = expected(tx, getattr(state, name), gradient, norm)
        assert_trees_close(getattr(after, name).params, wanted, 1e-4)
    assert float(metrics["generator_lr_factor"]) == 0.25
    assert "generator_lr" not in metrics
    moved = jnp.abs(after.generator.params["in"] - state.generator.params["in"]).max()
    assert moved > 1e-4  # generator_lr = 1e-9 did not reach it


def test_own_optimizers_skip_what_is_not_finite():
    batch = make_batch(CONFIG)
    bad = batch._replace(real=batch.real._replace(x_0=batch.real.x_0 * jnp.nan))
    cycle = make_cycle(toy.players(), CONFIG, optimizers=OWN, donate=False)
    state = own_state(CONFIG)
    after, _ = cycle(state, TEACHER, bad, jax.random.key(0))
    assert int(after.step.skipped) == 2
    jax.tree.map(np.testing.assert_array_equal, after.critic, state.critic)


def test_own_optimizers_skip_an_update_of_theirs_that_is_not_finite():
    """The gradients are finite, as are the generator's updates and so all that it does."""
    broken = Optimizers(OWN.generator, optax.chain(optax.sgd(0.1), optax.scale(jnp.inf)))
    state = own_state(CONFIG, broken)
    cycle = make_cycle(toy.players(), CONFIG, optimizers=broken, donate=False)
    after, metrics = cycle(state, TEACHER, make_batch(CONFIG), jax.random.key(0))
    assert int(metrics["skipped_updates"]) == CONFIG.critic_turns
    assert np.isfinite(metrics["critic_grad_norm"]).all()
    jax.tree.map(np.testing.assert_array_equal, after.critic, state.critic)
    jax.tree.map(np.testing.assert_array_equal, after.discriminator, state.discriminator)


def test_optimizers_with_moments_of_another_type_are_refused():
    """The two states have the same structure: nothing else would notice."""
    whole, half = (Optimizers(optax.adam(1e-3, mu_dtype=it)) for it in ("float32", "bfloat16"))
    state = own_state(CONFIG, whole)
    cycle = make_cycle(toy.players(), CONFIG, optimizers=half)
    with pytest.raises(ValueError, match="to init_state and to make_cycle alike"):
        jax.eval_shape(cycle, state, TEACHER, make_batch(CONFIG), jax.random.key(0))


@pytest.mark.parametrize("given_to_cycle", [True, False])
def test_optimizers_of_another_state_are_refused(given_to_cycle):
    cycle = make_cycle(toy.players(), CONFIG, optimizers=OWN if given_to_cycle else Optimizers())
    state = make_state(CONFIG) if given_to_cycle else own_state(CONFIG)
    with pytest.raises(ValueError, match="to init_state and to make_cycle alike"):
        jax.eval_shape(cycle, state, TEACHER, make_batch(CONFIG), jax.random.key(0))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Optimizers(generator=optax.adam), r"Optimizers.generator=.*adam.*call it with its rate"),
        (Optimizers(critic=1e-3), r"Optimizers.critic=0.001, expected an optax.Grad.*; give one"),
    ],
)
def test_what_is_no_optimizer_of_a_player_is_refused(given, expected):
    with pytest.raises(Refused, match=expected):
        make_cycle(toy.players(), CONFIG, optimizers=given)
    with pytest.raises(Refused, match=expected):
        own_state(CONFIG, given)


@pytest.mark.parametrize("given", [optax.sgd(0.1), None])
def test_optimizers_that_name_no_player_are_refused(given):
    """In tests the signature's types are checked too, before `init_state` comes to it."""
    with pytest.raises(
        Refused, match=r"expected Optimizers\(generator=..., critic=...\).*say whose"
    ):
        inspect.unwrap(check_optimizers)(given)


def test_players_are_the_teachers_network_by_default():
    net = toy.denoiser()
    made = type(toy.players())(teacher=net)
    assert made.generator is made.critic is net and made.discriminator is None
    assert made._replace(critic=None).critic is None  # a NamedTuple's own methods are kept
