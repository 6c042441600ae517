import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dmd2_jax.diffusion.guidance import Guided
from dmd2_jax.distill import (
    CycleBatch,
    Pairs,
    Samples,
    critic_turn,
    draw_cycle,
    generator_turn,
    init_state,
    make_cycle,
    run_cycle,
)
from dmd2_jax.distill.cycle import _fresh_samples
from dmd2_jax.recipe.placement import cycle_shardings, spread_players
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.runtime.sharding import make_mesh
from dmd2_jax.training.batches import HostBatch, prepare, put_batch
from tests.distill import toy

TEACHER = toy.init_mlp(0)


def make_state(config):
    head = {"w": jnp.linspace(-1.0, 1.0, 8)} if config.has_discriminator else None
    return init_state(config, generator=toy.init_mlp(1), critic=toy.init_mlp(2), discriminator=head)


def make_batch(config, seed=3):
    keys = jax.random.split(jax.random.key(seed), 4)
    lead = (config.critic_turns, config.batch_size)
    pairs = None
    if config.needs_pairs:
        noise = jax.random.normal(keys[3], (config.batch_size, *toy.SHAPE))
        pairs = Pairs(noise=noise, x_0=0.5 * noise, cond=jnp.ones((config.batch_size,)))
    return CycleBatch(
        real=Samples(
            jax.random.normal(keys[0], (*lead, *toy.SHAPE)), jax.random.normal(keys[1], lead)
        ),
        fake_cond=jax.random.normal(keys[2], lead),
        pairs=pairs,
    )


def one_program(state, teacher, batch, draws, *, players, config):
    """Return what `run_cycle` does, compiled whole: one by one its operations take far longer."""
    run = functools.partial(run_cycle, players=players, config=config)
    return jax.jit(run)(state, teacher, batch, draws)


def assert_trees_close(a, b, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


VARIANTS = {
    "official": {},
    "few_step": {"student_times": (8.0, 2.0, 0.5)},
    "noised_real_input": {"student_times": (8.0, 2.0), "backward_simulation": False},
    "shared_pass": {"shared_pass": True},
    "fresh_first_turn": {"first_turn_reuses_images": False},
    "no_gan": {"gan_generator_weight": None, "gan_critic_weight": None},
    "gan_only": {"dm_weight": None, "train_critic": False},
    "gan_only_ttur_with_critic": {"dm_weight": None},
    "no_ttur": {"critic_turns": 1},
    "dmd": {
        "critic_turns": 1,
        "gan_generator_weight": None,
        "gan_critic_weight": None,
        "regression_weight": 0.25,
    },
    "clean_gan": {"diffusion_gan": False},
    "guided": {"guidance": 2.0},
    "scales": {"guidance_range": (1.0, 4.0), "student_times": (8.0, 2.0)},
}


def with_scales(batch, draws):
    """Give each sample its guidance scale by hand."""
    if draws.scales is None:
        return batch
    fake = Guided(batch.fake_cond, draws.scales.fake)
    return batch._replace(
        real=batch.real._replace(cond=Guided(batch.real.cond, draws.scales.real)), fake_cond=fake
    )


def looped_cycle(state, teacher, batch, draws, *, players, config):
    """Return the state after one cycle, turn by turn, and the losses of generator and critic."""

    def entry(tree, i):
        return jax.tree.map(lambda x: x[i], tree)

    state, x_0, first = generator_turn(
        state,
        teacher,
        entry(batch.fake_cond, 0),
        entry(draws.rollouts, 0),
        draws.generator,
        players=players,
        config=config,
        real=entry(batch.real, 0),
        pairs=batch.pairs,
    )
    fresh = _fresh_samples(state, batch, draws.rollouts, players, config)
    fakes = [] if fresh is None else list(fresh)
    if config.first_turn_reuses_images:
        fakes = [x_0, *fakes]
    losses = []
    turn = jax.jit(
        functools.partial(critic_turn, players=players, config=config, teacher_params=teacher)
    )
    for i, fake in enumerate(fakes):
        state, m = turn(
            state,
            Samples(fake, entry(batch.fake_cond, i)),
            entry(batch.real, i),
            entry(draws.critic, i),
        )
        losses.append(m["critic_loss"])
    return state, first["generator_loss"], losses


@pytest.mark.parametrize("name", VARIANTS)
def test_run_cycle_equals_python_loop(name):
    config = toy.config(**VARIANTS[name])
    players, state, batch = toy.players_of(config), make_state(config), make_batch(config)
    draws = draw_cycle(jax.random.key(7), config, toy.SCHEDULE)
    scanned, metrics = one_program(state, TEACHER, batch, draws, players=players, config=config)
    looped, first_loss, losses = looped_cycle(
        state, TEACHER, with_scales(batch, draws), draws, players=players, config=config
    )
    assert len(losses) == config.critic_turns
    np.testing.assert_allclose(metrics["critic_loss"], np.stack(losses), rtol=1e-6)
    np.testing.assert_allclose(metrics["generator_loss"], first_loss, rtol=1e-6)
    assert_trees_close(scanned, looped)
    assert int(scanned.step.critic) == config.critic_turns
    assert int(scanned.step.generator) == 1
    moved = jnp.abs(scanned.generator.params["in"] - state.generator.params["in"]).max()
    assert moved > 1e-4


@pytest.mark.parametrize("times", [(8.0,), (8.0, 2.0, 0.5)])
def test_fresh_samples_equal_one_turn_at_a_time(times):
    config = toy.config(student_times=times)
    players, state, batch = toy.players(), make_state(config), make_batch(config)
    draws = draw_cycle(jax.random.key(7), config, toy.SCHEDULE)
    together = _fresh_samples(state, batch, draws.rollouts, players, config)
    for i in range(1, config.critic_turns):
        step = int(draws.rollouts.step[i])
        x_t = draws.rollouts.noise[i, 0]
        for j in range(step + 1):
            t = jnp.full((config.batch_size,), times[j])
            x_0 = players.generator.x0(state.generator.params, x_t, t, batch.fake_cond[i])
            if j < step:
                t_next = jnp.full((config.batch_size, 1, 1, 1), times[j + 1])
                x_t = toy.SCHEDULE.alpha(t_next) * x_0
                x_t += toy.SCHEDULE.sigma(t_next) * draws.rollouts.noise[i, j + 1]
        np.testing.assert_allclose(together[i - 1], x_0, rtol=1e-5, atol=1e-6)


def test_first_critic_turn_sees_images_from_before_the_update():
    config = toy.config(critic_turns=1, generator_lr=1.0)
    players, state, batch = toy.players(), make_state(config), make_batch(config)
    draws = draw_cycle(jax.random.key(7), config, toy.SCHEDULE)
    after, metrics = one_program(state, TEACHER, batch, draws, players=players, config=config)

    def critic_loss_on(params):
        t = jnp.full((8,), 8.0)
        x_0 = players.generator.x0(params, draws.rollouts.noise[0, 0], t, batch.fake_cond[0])
        draw, real = jax.tree.map(lambda x: x[0], (draws.critic, batch.real))
        fake = Samples(x_0, batch.fake_cond[0])
        return critic_turn(state, fake, real, draw, players=players, config=config)[1][
            "critic_loss"
        ]

    np.testing.assert_allclose(
        metrics["critic_loss"][0], critic_loss_on(state.generator.params), rtol=1e-6
    )
    assert abs(metrics["critic_loss"][0] - critic_loss_on(after.generator.params)) > 1e-3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # generator: with gradient, then the K - 1 fresh batches at once; teacher and critic for DM;
        # the GAN in the generator turn; in the scan body DSM and one pass over real and fake.
        ({}, {("generator", "x0"): 2, ("teacher", "x0"): 1, ("critic", "x0"): 2,
              ("critic", "features"): 2}),
        ({"gan_generator_weight": None, "gan_critic_weight": None},
         {("generator", "x0"): 2, ("teacher", "x0"): 1, ("critic", "x0"): 2}),
        ({"dm_weight": None, "train_critic": False},
         {("generator", "x0"): 2, ("critic", "features"): 2}),
        ({"shared_pass": True},
         {("generator", "x0"): 2, ("teacher", "x0"): 1, ("critic", "x0_and_features"): 2,
          ("critic", "features"): 1}),
        ({"critic_turns": 1}, {("generator", "x0"): 1, ("teacher", "x0"): 1, ("critic", "x0"): 2,
                               ("critic", "features"): 2}),
    ],
)  # fmt: skip
def test_cycle_traces_only_the_passes_it_needs(changes, expected):
    config, calls = toy.config(**changes), []
    cycle = make_cycle(toy.players(calls), config)
    cycle.lower(make_state(config), TEACHER, make_batch(config), jax.random.key(0))
    assert {call: calls.count(call) for call in set(calls)} == expected


def test_cycle_does_not_depend_on_donation():
    config = toy.config()
    results = []
    for donate in (False, True):
        cycle = make_cycle(toy.players(), config, donate=donate)
        state = make_state(config)
        for i in range(3):
            state, _ = cycle(state, TEACHER, make_batch(config, i), jax.random.key(i))
        results.append(state)
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_cycle_donates_its_state():
    config = toy.config()
    state = make_state(config)
    make_cycle(toy.players(), config)(state, TEACHER, make_batch(config), jax.random.key(0))
    assert state.critic.params["in"].is_deleted()
    assert not TEACHER["in"].is_deleted()


def test_cycle_compiles_once():
    config = toy.config()
    cycle = make_cycle(toy.players(), config)
    state = make_state(config)
    for i in range(4):
        state, _ = cycle(state, TEACHER, make_batch(config, i), jax.random.key(i))
    assert cycle._cache_size() == 1


def test_cycle_on_a_mesh_compiles_nothing_after_the_first():
    """Everything is as in the training's loop: images as bytes, split, prepared, a key a cycle."""
    config, mesh = toy.config(), make_mesh({"data": 2, "fsdp": 4})
    nets = [toy.init_mlp(seed, width=512) for seed in range(3)]  # wide enough to be split
    head = {"w": jnp.linspace(-1.0, 1.0, 512)}
    state = init_state(config, generator=nets[1], critic=nets[2], discriminator=head)
    shardings = cycle_shardings(state, nets[0], make_batch(config), mesh)
    state, teacher = jax.device_put((state, nets[0]), (shardings.state, shardings.teacher))
    assert not state.critic.params["in"].sharding.is_fully_replicated
    cycle = make_cycle(spread_players(toy.players(), mesh), config, shardings=shardings)
    family, compiled, counts = SimpleNamespace(cond=jnp.asarray), [], []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for i in range(4):
            draw = np.random.default_rng(i)
            lead = (config.critic_turns, config.batch_size)
            image = draw.integers(0, 256, (*lead, *toy.SHAPE), dtype=np.uint8)
            labels = draw.normal(size=(2, *lead)).astype(np.float32)
            batch = put_batch(HostBatch(image, *labels, None), mesh)
            batch = jax.device_put(prepare(batch, family), shardings.batch)
            key = stream_key(jax.random.key(0), "cycle", i)
            state, _ = cycle(state, teacher, batch, key)
            counts.append(len(compiled))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert counts[0] > 0
    assert counts == [counts[0]] * 4


IN_PARTS = {"batch_size": 16, "microbatches": 2}


@pytest.mark.parametrize(
    "changes", [{}, {"student_times": (8.0, 2.0, 0.5), "guidance_range": (1.0, 4.0)} | IN_PARTS]
)
def test_cycle_on_eight_devices_equals_one(changes):
    config = toy.config(**changes)
    cycle = make_cycle(toy.players_of(config), config, donate=False)
    batch, key = make_batch(config), jax.random.key(11)
    alone, metrics = cycle(make_state(config), TEACHER, batch, key)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(None, "data")))
    everywhere = NamedSharding(mesh, PartitionSpec())
    state, teacher = jax.device_put((make_state(config), TEACHER), everywhere)
    together, metrics_8 = cycle(state, teacher, spread, jax.device_put(key, everywhere))
    assert_trees_close(alone, together, 1e-5)
    np.testing.assert_allclose(metrics["critic_loss"], metrics_8["critic_loss"], rtol=1e-5)


def test_non_finite_gradients_skip_the_update():
    config = toy.config(critic_turns=2)
    players, state, batch = toy.players(), make_state(config), make_batch(config)
    poisoned = batch._replace(real=batch.real._replace(x_0=batch.real.x_0.at[1].set(jnp.nan)))
    draws = draw_cycle(jax.random.key(7), config, toy.SCHEDULE)
    good = jax.tree.map(lambda x: x[:1], (batch.real, batch.fake_cond, draws.critic))
    one_turn = CycleBatch(real=good[0], fake_cond=good[1])
    draws_1 = draws._replace(critic=good[2], rollouts=jax.tree.map(lambda x: x[:1], draws.rollouts))
    expected, _ = one_program(state, TEACHER, one_turn, draws_1, players=players, config=config)
    after, metrics = one_program(state, TEACHER, poisoned, draws, players=players, config=config)
    assert int(after.step.skipped) == 1
    assert np.isnan(metrics["critic_grad_norm"][1])
    assert_trees_close(after.critic, expected.critic)
    assert_trees_close(after.discriminator, expected.discriminator)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


def test_skipped_updates_in_a_row_are_counted_for_each_player():
    config = toy.config(critic_turns=2)
    players, state, batch = toy.players(), make_state(config), make_batch(config)
    cycle = make_cycle(players, config, donate=False)
    nan = jax.tree.map(lambda x: x * jnp.nan, TEACHER)
    rows = []
    # A poisoned teacher stops the generator's updates only; a poisoned second turn the critic's.
    one_turn = batch.real.x_0.at[1].set(jnp.nan)
    poisoned = batch._replace(real=batch.real._replace(x_0=one_turn))
    for i, (teacher, given) in enumerate([(nan, batch), (nan, poisoned), (TEACHER, poisoned)]):
        state, metrics = cycle(state, teacher, given, jax.random.key(i))
        counts = (state.step.generator_in_a_row, state.step.critic_in_a_row)
        rows.append([*(int(n) for n in counts), int(metrics["skipped_in_a_row"])])
    state, metrics = cycle(state, TEACHER, batch, jax.random.key(9))
    rows.append([*(int(n) for n in state.step[3:]), int(metrics["skipped_in_a_row"])])
    # The first critic turn of each cycle is good, and ends the row.
    assert rows == [[1, 0, 1], [2, 1, 2], [0, 1, 1], [0, 0, 0]]
    assert int(state.step.skipped) == 4


def test_generator_turn_leaves_the_critic_alone():
    config = toy.config()
    state, batch = make_state(config), make_batch(config)
    draws = draw_cycle(jax.random.key(7), config, toy.SCHEDULE)
    after, _, _ = generator_turn(
        state,
        TEACHER,
        batch.fake_cond[0],
        jax.tree.map(lambda x: x[0], draws.rollouts),
        draws.generator,
        players=toy.players(),
        config=config,
    )
    for a, b in zip(
        jax.tree.leaves((state.critic, state.discriminator)),
        jax.tree.leaves((after.critic, after.discriminator)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_make_cycle_refuses_a_gan_without_discriminator():
    with pytest.raises(ValueError, match=r"players\.discriminator is None"):
        make_cycle(toy.players()._replace(discriminator=None), toy.config())


@pytest.mark.parametrize("name", VARIANTS)
def test_microbatches_equal_one_large_batch(name):
    with jax.enable_x64(True):
        config = toy.config(**VARIANTS[name])
        players = toy.players_of(config)
        state, teacher, batch = doubled((make_state(config), TEACHER, make_batch(config)))
        draws = doubled(draw_cycle(jax.random.key(7), config, toy.SCHEDULE))
        whole, metrics = one_program(state, teacher, batch, draws, players=players, config=config)
        assert whole.critic.params["in"].dtype == jnp.float64
        parts = dataclasses.replace(config, microbatches=4)
        split, in_parts = one_program(state, teacher, batch, draws, players=players, config=parts)
        assert_trees_close(whole, split, 1e-6)
        assert metrics.keys() == in_parts.keys()
        assert_trees_close(metrics, in_parts, 1e-6)


@pytest.mark.parametrize("name", ["official", "few_step"])
def test_no_network_call_takes_more_than_a_microbatch(name):
    config = toy.config(**VARIANTS[name], microbatches=4)
    players, sizes = toy.players(), set()

    def x0(params, x_t, t, cond):
        sizes.add(len(x_t))
        return players.generator.x0(params, x_t, t, cond)

    watched = players._replace(generator=players.generator._replace(x0=x0))
    arguments = make_state(config), TEACHER, make_batch(config), jax.random.key(0)
    jax.eval_shape(make_cycle(watched, config), *arguments)
    assert sizes == {config.batch_size // 4}


def doubled(tree):
    """Return a tree's numbers in double precision."""
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
