"""The cycle of a real U-Net on meshes of eight devices: the numbers of one device."""

import functools
import re
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from dmd2_jax.denoiser import map_params
from dmd2_jax.distill import (
    CycleBatch,
    CycleShardings,
    DistillConfig,
    Players,
    Samples,
    init_state,
    make_cycle,
)
from dmd2_jax.families.edm import family as edm
from dmd2_jax.networks.gan_head import GanHead, discriminator
from dmd2_jax.networks.lora import LoraConfig, lora_adapter, lora_init
from dmd2_jax.plan.program_costs import Collective, read_program
from dmd2_jax.recipe.placement import spread_players
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.runtime.sharding import (
    batch_sharding,
    make_mesh,
    partition_spec,
    replicated,
    tree_shardings,
)
from tests.distill import toy

CYCLES = 5
JAXLIB = ".".join(metadata.version("jaxlib").split(".")[:2])  # the compiler's release
TURNS = 2
CLASSES = 4
BATCH = 16
ONE_STEP = (80.0,)
FEW_STEP = (80.0, 20.0, 2.0)
COMPARED = ("generator_loss", "generator_grad_norm", "critic_loss", "critic_grad_norm")


@functools.cache
def family() -> Any:
    model = {
        "network": "adm",
        "resolution": 8,
        "image_channels": 1,
        "num_classes": CLASSES,
        "model_channels": 16,
        "channel_mult": (1,),
        "num_blocks": 1,
        "attention_resolutions": (),
        "dropout": 0.0,
        "dtype": "float32",
        "remat": "none",
        "sigma_data": 0.5,
    }
    schedule = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "num_levels": 100}
    return edm.build(model | schedule)


@functools.cache
def settings(times: tuple[float, ...], parts: int) -> DistillConfig:
    return DistillConfig(
        sample_shape=(8, 8, 1),
        batch_size=BATCH,
        microbatches=parts,
        critic_turns=TURNS,
        student_times=times,
        generator_lr=1e-4,
        critic_lr=1e-4,
        warmup=0,
        ema_decays=(0.9,),
    )


def batch_of(i: int) -> CycleBatch:
    keys = jax.random.split(jax.random.key(100 + i), 3)
    labels = [jax.random.randint(key, (TURNS, BATCH), 0, CLASSES) for key in keys[:2]]
    real = jax.random.normal(keys[2], (TURNS, BATCH, 8, 8, 1)) * 0.5
    one_hot = [jax.nn.one_hot(label, CLASSES) for label in labels]
    return CycleBatch(Samples(real, one_hot[0]), one_hot[1])


@functools.cache
def run(
    sizes: tuple[int, int, int] | None, times: tuple[float, ...], *, parts: int = 1, rank: int = 0
) -> dict[str, Any]:
    """Run the cycles on a mesh (None: on one device); return metrics, state and program.

    Each batch is taken in so many parts. With a rank, generator and critic train adapters of that
    rank on the teacher's weights.
    """
    config, fam = settings(times, parts), family()
    head = discriminator(GanHead(hidden=8))
    teacher = away_from_zero(fam.init(jax.random.key(0)))
    head_params = head.init(jax.random.key(1), fam.feature_shapes(1))
    denoiser, shardings = fam.denoiser, None
    players, own = Players(denoiser, denoiser, denoiser, head), teacher
    if rank:
        lora = LoraConfig(rank, rank, ("conv?", "affine"))
        adapter = lora_adapter(lora)
        own = away_from_zero(lora_init(jax.random.key(3), teacher, lora))
        players = players._replace(generator_adapter=adapter, critic_adapter=adapter)
    state = init_state(config, generator=own, critic=own, discriminator=head_params)
    if sizes is not None:
        mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
        players = spread_players(players, mesh)
        shardings = shardings_on(mesh, state, teacher)
        state, teacher = jax.device_put((state, teacher), (shardings.state, shardings.teacher))
    cycle = make_cycle(players, config, shardings=shardings)
    key = jax.random.key(2)
    lowered = cycle.lower(state, teacher, place(batch_of(0), shardings), stream_key(key, "c", 0))
    program = lowered.compile()
    rows = []
    for i in range(CYCLES):
        batch, cycle_key = place(batch_of(i), shardings), stream_key(key, "c", i)
        if shardings is not None:
            cycle_key = jax.device_put(cycle_key, shardings.key)
        state, metrics = program(state, teacher, batch, cycle_key)
        rows.append({name: metrics[name] for name in COMPARED})
    return {
        "metrics": jax.tree.map(lambda *values: np.stack(values), *rows),
        "state": state,
        "text": program.as_text(),
        "donated": program.memory_analysis().alias_size_in_bytes,
    }


def away_from_zero(params: Any) -> Any:
    """Move parameters off their start, where last layers and adapters are zero and hide the rest.

    Critic and teacher would be so alike that rounding shows in their difference.
    """
    return jax.tree.map(
        lambda p: p + 0.02 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )


def shardings_on(mesh: Mesh, state: Any, teacher: Any) -> CycleShardings:
    return CycleShardings(
        tree_shardings(state, mesh),
        tree_shardings(teacher, mesh),
        batch_sharding(mesh, axis=1),
        replicated(mesh),
    )


def place(batch: CycleBatch, shardings: CycleShardings | None) -> CycleBatch:
    return batch if shardings is None else jax.device_put(batch, shardings.batch)


# Every program costs the tests half a minute: each mesh once, with a student of one or few steps.
# Few steps contain all that one step does, whose collectives with fsdp are weighed alone in
# benchmark_scripts/test_weak_scaling.py; a few-step student's batch in parts is split over the
# data alone too, with the toy network below. What a mesh and one device both do wrong with parts,
# the one device that takes the batch whole does not.
MESHES = {
    "data_8": ((8, 1, 1), ONE_STEP, 1),
    "few_step_in_parts_data_2_fsdp_4": ((2, 4, 1), FEW_STEP, 2),
    "few_step_data_2_fsdp_2_tensor_2": ((2, 2, 2), FEW_STEP, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_cycle_on_a_mesh_equals_one_device(name: str) -> None:
    assert_same_run(run_on(name), run(None, MESHES[name][1]))


def run_on(name: str) -> dict[str, Any]:
    """Return the run on one of MESHES, which is made once."""
    sizes, times, parts = MESHES[name]
    return run(sizes, times, parts=parts)


def assert_same_run(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare losses, norms of gradients, and every array of the state, to 1e-5.

    Adam's steps do not depend on a gradient's scale, but its moments and the norms do. Its second
    moments are squares, and are compared by their roots: what is held to 1e-5 are gradients.
    """
    for name in COMPARED:
        np.testing.assert_allclose(
            got["metrics"][name], expected["metrics"][name], rtol=1e-5, err_msg=name
        )
    paths = jax.tree_util.tree_leaves_with_path(expected["state"])
    for (path, right), array in zip(paths, jax.tree.leaves(got["state"]), strict=True):
        name = jax.tree_util.keystr(path)
        root = np.sqrt if ".nu" in name else np.asarray
        got_array, right_array = (root(np.asarray(it, np.float64)) for it in (array, right))
        wrong = np.linalg.norm(got_array - right_array)
        assert wrong <= 1e-5 * np.linalg.norm(right_array), name


@pytest.mark.slow
def test_cycle_of_adapters_in_parts_on_a_mesh_equals_one_device() -> None:
    assert_same_run(adapters_in_parts(), run(None, ONE_STEP, rank=16))


def adapters_in_parts() -> dict[str, Any]:
    # Rank 16, so that the adapters of the convolutions are large enough to be split.
    return run((2, 4, 1), ONE_STEP, parts=2, rank=16)


@pytest.mark.slow
def test_adapters_of_a_mesh_are_split_and_each_players_own() -> None:
    state = adapters_in_parts()["state"]
    down, of_critic = (
        player.params["lora"]["enc_8x8_block0"]["conv0"]["down"]
        for player in (state.generator, state.critic)
    )
    assert down.addressable_shards[0].data.size * 4 == down.size
    assert not np.array_equal(down, of_critic)


@pytest.mark.slow
def test_sharded_state_stays_sharded() -> None:
    state = run_on("few_step_in_parts_data_2_fsdp_4")["state"]
    split = [
        leaf for leaf in jax.tree.leaves(state) if leaf.addressable_shards[0].data.size < leaf.size
    ]
    kept = sum(leaf.size for leaf in split) / sum(leaf.size for leaf in jax.tree.leaves(state))
    assert kept > 0.8
    assert all(leaf.addressable_shards[0].data.size * 4 == leaf.size for leaf in split)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data_8", "few_step_in_parts_data_2_fsdp_4"])
def test_cycle_writes_each_shard_of_the_state_over_the_old_one(name: str) -> None:
    found = run_on(name)
    shards = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(found["state"])]
    assert found["donated"] == sum(shards)


def collectives(name: str) -> dict[str, Collective]:
    return read_program(run_on(name)["text"]).collectives


def sizes_of(params: Any, only: str = "") -> list[int]:
    """Return the bytes of every array whose path has one of the words of `only`, split by |."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [x.nbytes for path, x in leaves if re.search(only, jax.tree_util.keystr(path))]


def split_over_fsdp(params: Any, sizes: tuple[int, int, int]) -> list[int]:
    """Return the bytes of every array that is split."""
    mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    leaves = jax.tree.leaves(params)
    return [x.nbytes for x in leaves if "fsdp" in partition_spec("", x.shape, mesh)]


def reduced_bytes() -> int:
    """Return the bytes of the gradients of one cycle that are summed over the devices."""
    state = run_on("data_8")["state"]
    network, head = (sum(sizes_of(it.params)) for it in (state.generator, state.discriminator))
    # The critic is called twice a turn, for denoising and for its features, which need no decoder.
    # CPU's compiler sums the gradients of the two calls one by one; TPU's adds them up before.
    encoder = sum(sizes_of(state.critic.params, "enc_|map_"))
    return network + TURNS * (network + encoder + head)


LOGITS = [4 * BATCH, 4 * TURNS * BATCH, 4 * TURNS * BATCH]
"""Bytes of the metrics of single samples: the discriminator's logits for the generator's turn, and
for the real and the student's samples of the critic turns."""

SCALARS = 800
"""At most as many bytes of a cycle's metrics are summed over the devices."""


@pytest.mark.slow
def test_data_parallel_cycle_reduces_each_gradient_and_moves_nothing_else() -> None:
    found = collectives("data_8")
    # No activation is gathered, but for the logits. Each turn sums all its gradients at once, the
    # counts of its metrics (integers), and the squares of the samples' deviations, which need the
    # mean first.
    assert set(found) == {"all-gather", "all-reduce"}
    assert found["all-gather"] == Collective(len(LOGITS), sum(LOGITS))
    assert found["all-reduce"].number == 3 * (1 + TURNS)
    assert 0 <= found["all-reduce"].num_bytes - reduced_bytes() <= SCALARS


def test_data_parallel_cycle_in_parts_reduces_the_gradients_of_each_part() -> None:
    config = toy.config(
        batch_size=BATCH, critic_turns=TURNS, student_times=(8.0, 2.0, 0.5), microbatches=2
    )
    nets = [toy.init_mlp(seed) for seed in range(3)]
    head = {"w": jnp.linspace(-1.0, 1.0, 8)}
    state = init_state(config, generator=nets[1], critic=nets[2], discriminator=head)
    mesh = make_mesh({"data": 8})
    shardings = shardings_on(mesh, state, nets[0])
    cycle = make_cycle(spread_players(toy.players(), mesh), config, shardings=shardings)
    real = Samples(jnp.ones((TURNS, BATCH, *toy.SHAPE)), jnp.ones((TURNS, BATCH)))
    batch = CycleBatch(real, jnp.ones((TURNS, BATCH)))
    program = cycle.lower(state, nets[0], batch, jax.random.key(0)).compile()
    found = read_program(program.as_text()).collectives
    assert set(found) == {"all-gather", "all-reduce"}
    assert found["all-gather"] == Collective(len(LOGITS), sum(LOGITS))
    assert found["all-reduce"].number == 2 * 3 * (1 + TURNS)
    # The critic's features are made by its first layer alone.
    network, first, of_head = sum(sizes_of(nets[1])), nets[1]["in"].nbytes, head["w"].nbytes
    reduced = network + TURNS * (network + first + of_head)
    assert 0 <= found["all-reduce"].num_bytes - 2 * reduced <= 2 * SCALARS


@pytest.mark.slow
def test_fsdp_cycle_in_parts_gathers_once_for_all_parts_but_in_simulated_steps() -> None:
    mesh, name = (2, 4, 1), "few_step_in_parts_data_2_fsdp_4"
    found, state = collectives(name), run_on(name)["state"]
    network, head = (
        split_over_fsdp(it.params, mesh) for it in (state.generator, state.discriminator)
    )
    # Every split array is gathered once for each set of weights that is used, however often it is:
    # the generator before and after its update, the teacher, the critic and the head in the
    # generator's turn; critic and head in each of their turns. By jaxlib 0.10 once more for the
    # rollouts of the critic's samples, and in the generator's turn for each part and simulated
    # step that is run, of two: in the branch. By jaxlib 0.12 what is gathered for the turns serves
    # the rollouts too.
    rollouts = network + 2 * 2 * network if JAXLIB == "0.10" else []
    gathered = 4 * network + head + TURNS * (network + head) + rollouts + LOGITS
    assert found["all-gather"] == Collective(len(gathered), sum(gathered))
    # As with data parallelism; the norm of gradients that are split is one for all parts.
    assert found["all-reduce"].number == (2 * 3 + 1) * (1 + TURNS)
    assert 0 <= found["all-reduce"].num_bytes - 2 * reduced_bytes() <= 2 * SCALARS
    assert set(found) == {"all-gather", "all-reduce"}


@pytest.mark.slow
def test_cycle_of_adapters_in_parts_moves_no_activations() -> None:
    # One-step students take the samples of all turns in parts, which few-step students do not.
    found = read_program(adapters_in_parts()["text"]).collectives
    assert set(found) == {"all-gather", "all-reduce"}


@pytest.mark.slow
def test_tensor_parallel_cycle_has_the_collectives_it_had() -> None:
    # Not derived: the partitioner splits channels here, so that activations do move.
    numbers = {
        kind: it.number for kind, it in collectives("few_step_data_2_fsdp_2_tensor_2").items()
    }
    gathered, reduced = (688, 70) if JAXLIB == "0.10" else (656, 67)
    assert numbers == {
        "all-gather": gathered,
        "all-reduce": reduced,
        "all-to-all": 375,
        "collective-permute": 118,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_cycle_never_waits_for_the_host(name: str) -> None:
    text = run_on(name)["text"]
    opcodes = set(re.findall(r" (infeed|outfeed|send|recv|send-done|recv-done)\(", text))
    assert not opcodes
    targets = set(re.findall(r'custom_call_target="([^"]*)"', text))
    assert not {target for target in targets if re.search("callback|host|python", target, re.I)}


def test_map_params_changes_what_every_function_sees() -> None:
    fam = family()
    params = fam.init(jax.random.key(0))
    doubled = map_params(fam.denoiser, lambda p: jax.tree.map(lambda x: 2 * x, p))
    x, t, cond = jnp.ones((1, 8, 8, 1)), jnp.ones(1), jnp.zeros((1, CLASSES))
    twice = jax.tree.map(lambda p: 2 * p, params)
    for name in ("x0", "features", "x0_and_features"):
        got = getattr(doubled, name)(params, x, t, cond)
        expected = getattr(fam.denoiser, name)(twice, x, t, cond)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
