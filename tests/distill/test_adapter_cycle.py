"""Players that share the teacher's weights as one frozen base and train low-rank adapters alone."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.denoiser import Denoiser, map_params
from dmd2_jax.distill import (
    DistillConfig,
    Players,
    TrainState,
    draw_cycle,
    init_state,
    make_cycle,
    run_cycle,
)
from dmd2_jax.networks.layers import Linear
from dmd2_jax.networks.lora import LoraConfig, lora_adapter, lora_init
from dmd2_jax.typing import Array
from tests.distill import toy
from tests.distill.test_cycle import (
    VARIANTS,
    assert_trees_close,
    doubled,
    looped_cycle,
    make_batch,
    one_program,
)

LORA = LoraConfig(rank=4, alpha=2.0, targets=("in", "out"))
PLAIN = toy.init_mlp(0)
BASE = {
    "params": {
        "in": {"kernel": PLAIN["in"]},
        "out": {"kernel": PLAIN["out"], "bias": PLAIN["bias"]},
    }
}


class Mlp(nn.Module):
    """The network of `toy`, made of the project's layers."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_t: Array, t: Array, cond: Array) -> tuple[Array, Array]:
        flat = x_t.reshape(x_t.shape[0], -1)
        inputs = jnp.concatenate([flat, jnp.log1p(t)[:, None], cond[:, None]], axis=1)
        hidden = jnp.tanh(Linear(8, use_bias=False, dtype=self.dtype, name="in")(inputs))
        out = Linear(4, dtype=self.dtype, name="out")(hidden).reshape(x_t.shape)
        return 0.3 * x_t / (1.0 + t)[:, None, None, None] + out, hidden


def denoiser(dtype: Any = jnp.float32) -> Denoiser:
    def both(params: Any, x_t: Array, t: Array, cond: Array) -> tuple[Array, tuple[Array]]:
        x_0, hidden = Mlp(dtype).apply(params, x_t, t, cond)
        return x_0, (hidden,)

    return Denoiser(
        lambda *arguments: both(*arguments)[0],
        lambda *arguments: both(*arguments)[1],
        both,
        toy.SCHEDULE,
        jnp.zeros_like,
    )


def players(lora_critic: bool, dtype: Any = jnp.float32) -> Players:
    adapter, one = lora_adapter(LORA), denoiser(dtype)
    return Players(one, one, one, toy.DISCRIMINATOR, adapter, adapter if lora_critic else None)


def adapters(seed: int) -> Any:
    """Return adapters that are not zero, so that the first cycle moves both of their halves."""
    own = lora_init(jax.random.key(seed), BASE, LORA)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), own)


def make_state(config: DistillConfig, lora_critic: bool) -> TrainState:
    return init_state(
        config,
        generator=adapters(1),
        critic=adapters(2) if lora_critic else BASE,
        discriminator={"w": jnp.linspace(-1.0, 1.0, 8)} if config.has_discriminator else None,
    )


def merged_by_hand(own: Any) -> dict[str, Array]:
    """Return weights for `toy`'s plain network: W + alpha / rank (down up)."""
    own = own["lora"]
    product = {name: 0.5 * own[name]["down"] @ own[name]["up"] for name in ("in", "out")}
    return {
        "in": PLAIN["in"] + product["in"],
        "out": PLAIN["out"] + product["out"],
        "bias": PLAIN["bias"],
    }


@pytest.mark.parametrize("name", ["official", "few_step"])
def test_cycles_of_adapters_equal_cycles_on_merged_weights(name: str) -> None:
    config = toy.config(**VARIANTS[name])
    # The reference knows no adapters: a network whose parameters are factors of its weights.
    plain = map_params(toy.denoiser(), merged_by_hand)
    reference = Players(toy.denoiser(), plain, plain, toy.DISCRIMINATOR)
    cycle = make_cycle(players(lora_critic=True), config, donate=False)
    expected_cycle = make_cycle(reference, config, donate=False)
    state = expected = make_state(config, lora_critic=True)
    for i in range(4):
        batch, key = make_batch(config, i), jax.random.key(i)
        state, metrics = cycle(state, BASE, batch, key)
        expected, of_reference = expected_cycle(expected, PLAIN, batch, key)
        for loss in ("generator_loss", "critic_loss"):
            np.testing.assert_allclose(metrics[loss], of_reference[loss], rtol=1e-4, err_msg=loss)
    assert_trees_close(state.generator.params, expected.generator.params, 1e-4)
    assert_trees_close(state.critic.params, expected.critic.params, 1e-4)
    assert_trees_close(state.ema, expected.ema, 1e-4)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), state.generator.params, adapters(1))
    assert min(jax.tree.leaves(moved)) > 1e-2


@pytest.mark.parametrize(("name", "lora_critic"), [("official", True), ("few_step", False)])
def test_run_cycle_of_adapters_equals_python_loop(name: str, lora_critic: bool) -> None:
    # In double precision, so that rounding does not decide: Adam divides by what may be nearly 0.
    with jax.enable_x64(True):
        config = toy.config(**VARIANTS[name])
        both = players(lora_critic, jnp.float64)
        state, base, batch = doubled((make_state(config, lora_critic), BASE, make_batch(config)))
        draws = doubled(draw_cycle(jax.random.key(7), config, toy.SCHEDULE))
        scanned, metrics = one_program(state, base, batch, draws, players=both, config=config)
        assert jax.tree.leaves(scanned.generator.params)[0].dtype == jnp.float64
        bound = both.on_base(base)
        looped, loss, losses = looped_cycle(state, base, batch, draws, players=bound, config=config)
        np.testing.assert_allclose(metrics["critic_loss"], np.stack(losses), rtol=1e-6)
        np.testing.assert_allclose(metrics["generator_loss"], loss, rtol=1e-6)
        assert_trees_close(scanned, looped)


def test_state_holds_the_adapters_alone() -> None:
    config = toy.config()
    state = make_state(config, lora_critic=True)
    # in: 6 -> 8, out: 8 -> 4, rank 4.
    numbers = (6 * 4 + 4 * 8) + (8 * 4 + 4 * 4)
    for player in (state.generator, state.critic):
        assert sum(x.size for x in jax.tree.leaves(player.params)) == numbers
        assert sum(x.size for x in jax.tree.leaves(player.opt_state)) == 2 * numbers + 1  # count
    assert sum(x.size for x in jax.tree.leaves(state.ema)) == numbers


def test_cycle_of_adapters_never_donates_the_base() -> None:
    config = toy.config()
    state = make_state(config, lora_critic=True)
    make_cycle(players(True), config)(state, BASE, make_batch(config), jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.generator.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(BASE))


def test_microbatches_of_adapters_equal_one_large_batch() -> None:
    with jax.enable_x64(True):
        config = toy.config()
        given = (make_state(config, True), BASE, make_batch(config))
        draws = draw_cycle(jax.random.key(7), config, toy.SCHEDULE)
        double = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, (*given, draws)
        )
        parts = dataclasses.replace(config, microbatches=4)
        runs = [
            functools.partial(run_cycle, players=players(True), config=c) for c in (config, parts)
        ]
        whole, split = (jax.jit(run)(*double)[0] for run in runs)
        assert_trees_close(whole, split, 1e-6)


def test_cycle_refuses_adapters_of_another_rank() -> None:
    config = toy.config()
    other = lora_adapter(dataclasses.replace(LORA, rank=8))
    wrong = players(True)._replace(generator_adapter=other)
    with pytest.raises(ValueError, match="do not fit the base at rank=8"):
        make_cycle(wrong, config)(
            make_state(config, True), BASE, make_batch(config), jax.random.key(0)
        )
