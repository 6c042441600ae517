"""What waits in the host's memory: where it lies, and that the cycle gives the same numbers."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.distill import (
    CycleBatch,
    CycleShardings,
    DistillConfig,
    Samples,
    TrainState,
    init_state,
    make_cycle,
)
from dmd2_jax.distill import state as state_module
from dmd2_jax.recipe.placement import OFFLOAD, check_player_rules, cycle_shardings, spread_players
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.runtime.distributed import put, to_host
from dmd2_jax.runtime.offload import host_shardings
from dmd2_jax.runtime.sharding import Rules, make_mesh, tree_shardings
from tests.distill import toy

WIDTH = 512  # both matrices have at least 2,048 elements, the bias has not
TEACHER = toy.init_mlp(0, WIDTH)
CONFIG = toy.config(moment_dtype="bfloat16")


def batch_of(config: DistillConfig, seed: int) -> CycleBatch:
    keys = jax.random.split(jax.random.key(seed), 3)
    lead = (config.critic_turns, config.batch_size)
    real = Samples(
        jax.random.normal(keys[0], (*lead, *toy.SHAPE)), jax.random.normal(keys[1], lead)
    )
    return CycleBatch(real, jax.random.normal(keys[2], lead))


class Run:
    """The toy cycle on one device, with what is named on the host."""

    def __init__(self, offload: tuple[str, ...]) -> None:
        mesh = make_mesh({"data": 1})
        nets = [toy.init_mlp(seed, WIDTH) for seed in (1, 2)]
        head = {"w": jnp.linspace(-1.0, 1.0, WIDTH)}
        state = init_state(CONFIG, generator=nets[0], critic=nets[1], discriminator=head)
        batch = batch_of(CONFIG, 0)
        self.shardings: CycleShardings = cycle_shardings(
            state, TEACHER, batch, mesh, offload=offload
        )
        self.start: TrainState = jax.device_put(state, self.shardings.state)
        self.teacher = jax.device_put(TEACHER, self.shardings.teacher)
        players = spread_players(toy.players(), mesh)
        self.cycle = make_cycle(players, CONFIG, donate=False, shardings=self.shardings)

    def advance(self, state: TrainState, i: int) -> tuple[TrainState, dict[str, Any]]:
        return self.cycle(state, self.teacher, batch_of(CONFIG, i), jax.random.key(i))

    @functools.cached_property
    def states(self) -> list[TrainState]:
        """The states after one and two cycles."""
        first, _ = self.advance(self.start, 1)
        return [first, self.advance(first, 2)[0]]


@functools.cache
def run(*offload: str) -> Run:
    return Run(offload)


def kinds(tree: Any) -> set[str]:
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree) if leaf.size >= 2048}


def assert_equal(got: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_cycle_gives_the_same_numbers_with_arrays_on_the_host() -> None:
    assert_equal(run(*OFFLOAD).states[1], run().states[1])


def test_cycle_leaves_arrays_where_they_lay() -> None:
    state = run(*OFFLOAD).states[1]
    for player in (state.generator, state.critic):
        assert kinds(player.opt_state) == {"pinned_host"}
        assert kinds(player.params) == {"device"}
    assert kinds(run().states[1]) == {"device"}


def test_cycle_compiles_once_with_arrays_on_the_host() -> None:
    assert len(run(*OFFLOAD).states) == 2
    assert run(*OFFLOAD).cycle._cache_size() == 1


def test_resumed_state_on_the_host_goes_on_bit_for_bit(tmp_path: Path) -> None:
    alive = run(*OFFLOAD)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, alive.states[0])
        template = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            alive.states[0],
            alive.shardings.state,
        )
        restored = checkpoints.restore(template).state
    assert kinds(restored.critic.opt_state) == {"pinned_host"}
    assert_equal(alive.advance(restored, 2)[0], alive.states[1])


def test_cycle_shardings_leave_small_arrays_on_the_device() -> None:
    teacher = run("teacher").shardings.teacher
    found = {name: place.memory_kind for name, place in teacher.items()}
    assert found == {"in": "pinned_host", "out": "pinned_host", "bias": "device"}


def test_cycle_shardings_refuse_what_cannot_wait_on_the_host() -> None:
    with pytest.raises(ValueError, match=r"offload has \['critic'\], expected names of"):
        run("critic")


def test_spread_teacher_is_fetched_before_it_is_gathered() -> None:
    mesh = make_mesh({"data": 1, "fsdp": 2})
    teacher = spread_players(toy.players(), mesh).teacher
    places = host_shardings(TEACHER, tree_shardings(TEACHER, mesh))
    params = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), TEACHER, places
    )
    x_t, t = jnp.ones((2, *toy.SHAPE)), jnp.ones(2)
    equations = jax.make_jaxpr(teacher.x0)(params, x_t, t, t).eqns
    waiting = {params["in"].shape, params["out"].shape}
    users = [e.primitive.name for e in equations for v in e.invars if on_host(v)]
    assert users == ["device_put"] * len(waiting)


def on_host(variable: Any) -> bool:
    return getattr(variable.aval, "memory_space", None) == jax.memory.Space.Host


HEAD = {"w": np.linspace(-1.0, 1.0, 4096, dtype=np.float32)}
NETS = to_host([toy.init_mlp(seed, WIDTH) for seed in (1, 2)])


def first_state(places: TrainState | None = None) -> TrainState:
    return init_state(
        toy.config(moment_dtype="bfloat16", ema_decays=(0.9,)),
        generator=NETS[0],
        critic=NETS[1],
        discriminator=HEAD,
        places=places,
    )


def places_on(rules: Rules = (), offload: tuple[str, ...] = ()) -> CycleShardings:
    mesh, shapes = make_mesh({"data": 2, "fsdp": 4}), jax.eval_shape(first_state)
    return cycle_shardings(shapes, TEACHER, batch_of(CONFIG, 0), mesh, rules, offload)


@pytest.mark.parametrize("offload", [(), OFFLOAD])
def test_init_state_lies_where_it_belongs_and_has_the_same_numbers(offload: tuple) -> None:
    places = places_on(offload=offload).state
    got, expected = first_state(places), first_state()
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert jax.tree.map(lambda x: x.sharding, got) == places
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    # The cycle is given the state's memory to write over: nothing may be in it twice.
    held = [it.data.unsafe_buffer_pointer() for x in jax.tree.leaves(got) for it in shards(x)]
    assert len(set(held)) == len(held)


def shards(x: jax.Array) -> list[Any]:
    return list(x.addressable_shards)


def test_init_state_is_at_no_time_whole_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    places = places_on().state
    # Kept, so that no new array takes the place of one; there can be tens of thousands.
    shapes, kept = jax.eval_shape(first_state), {id(x): x for x in jax.live_arrays()}
    split = {
        leaf.size
        for leaf, place in zip(jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True)
        if not place.is_fully_replicated
    }
    assert 4096 in split  # the head's
    looks = []

    def spied(tree: Any, place: Any) -> Any:
        new = [x for x in jax.live_arrays() if id(x) not in kept]
        looks.append([x.shape for x in new if x.size in split and shards(x)[0].data.size == x.size])
        return put(tree, place)

    monkeypatch.setattr(state_module, "put", spied)
    first_state(places)
    assert looks == [[]] * len(looks)
    assert len(looks) == 3 * 2 + 1 + 1  # players before and after they are copied, average, turns


def test_cycle_shardings_match_rules_from_each_players_own_root() -> None:
    # By default "out" and "w" are split along their first axis.
    found = places_on((("^out$", (None, "fsdp")), ("^w$", (None,))))
    state = found.state
    whole = [found.teacher, *state.ema, *networks(state.generator), *networks(state.critic)]
    assert {tuple(params["out"].spec) for params in whole} == {(None, "fsdp")}
    assert {tuple(params["w"].spec) for params in networks(state.discriminator)} == {(None,)}


def networks(player: Any) -> list[Any]:
    """The trees of a player that are like its parameters: these and Adam's moments."""
    adam = player.opt_state[0]
    return [player.params, adam.mu, adam.nu]


def test_check_player_rules_knows_the_discriminators_parameters() -> None:
    mesh, shapes = make_mesh({"data": 2, "fsdp": 4}), jax.eval_shape(first_state)
    check_player_rules((("^w$", ("fsdp",)),), TEACHER, shapes, mesh)
    with pytest.raises(ValueError, match="no parameter's path matches 'generator/'"):
        check_player_rules((("generator/", ("fsdp",)),), TEACHER, shapes, mesh)
