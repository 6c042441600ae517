"""Plans: the compiler's own figures, shard sizes by hand, and remedies."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import pytest
from ml_collections import ConfigDict

from dmd2_jax.config.flags import as_flags
from dmd2_jax.config.load import apply_overrides
from dmd2_jax.plan import plan
from dmd2_jax.plan.buffers import Buffers, assign_buffers, is_whole
from dmd2_jax.plan.chips import CHIPS, chip_of
from dmd2_jax.plan.cycle import open_cycle
from dmd2_jax.plan.jaxpr_flops import jaxpr_flops
from dmd2_jax.plan.plan import _asked_for, _compiled, _owners, _parts, find_remedy, make_plan, sweep
from dmd2_jax.plan.tables import Plan, Unplanned, plan_table, sweep_table
from dmd2_jax.recipe.distillation import trace
from tests import tiny_unet
from tests.plans import example, recipe


def with_memory(config: ConfigDict) -> tuple[Plan, Any]:
    """Return a plan, and what the compiler says of the memory of the program it was read off."""
    programs = []
    compile_it = jax.stages.Lowered.compile

    def keep(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        programs.append(compile_it(lowered))
        return programs[0]

    with mock.patch.object(jax.stages.Lowered, "compile", keep):
        made = make_plan(config)
    (program,) = programs
    return made, program.memory_analysis()


@pytest.fixture(scope="module")
def alone() -> tuple[Plan, Any]:
    return with_memory(recipe())


@pytest.fixture(scope="module")
def spread() -> tuple[Plan, Any]:
    return with_memory(recipe(mesh__data="2", mesh__fsdp="4"))


@pytest.fixture(scope="module")
def one_device(alone: tuple[Plan, Any]) -> Plan:
    return alone[0]


def test_plan_counts_the_owners_bytes(one_device: Plan) -> None:
    teacher = one_device.owners["teacher"]["params"]
    generator = one_device.owners["generator"]
    assert teacher == generator["params"] == generator["average"]
    # Adam's two moments and its count of updates.
    assert generator["optimiser"] == 2 * teacher + 4
    # [K, b] images of 8 x 8 in float32, and two sets of classes in int32.
    assert one_device.owners["batch"]["params"] == 4 * 2 * 8 * (64 + 2)


# What belongs to none of a plan's owners: the key of two 32-bit words, and five counts of turns.
NO_OWNERS = 2 * 4 + 5 * 4


@pytest.mark.parametrize("mesh", ["alone", "spread"])
def test_plan_owners_hold_the_programs_arguments(mesh: str, request: pytest.FixtureRequest) -> None:
    made, memory = request.getfixturevalue(mesh)
    known = sum(sum(held.values()) for held in made.owners.values())
    assert known + NO_OWNERS == memory.argument_size_in_bytes


@pytest.mark.parametrize("mesh", ["alone", "spread"])
def test_plan_needs_what_the_compiler_lays_out(mesh: str, request: pytest.FixtureRequest) -> None:
    made, memory = request.getfixturevalue(mesh)
    written = memory.output_size_in_bytes - memory.alias_size_in_bytes  # where nothing is donated
    arguments = memory.argument_size_in_bytes
    assert made.peak_bytes == arguments + memory.temp_size_in_bytes + written
    assert made.fits


def test_plan_on_a_cpu_has_no_limit_and_no_collectives(one_device: Plan) -> None:
    assert one_device.limit_bytes is None
    assert one_device.collectives == {}


def test_compiled_needs_the_compilers_peak_where_temporaries_are_not_told() -> None:
    # As TPU's compiler sometimes does.
    sizes = {"argument": 5, "output": 4, "temp": 0, "alias": 4, "host_argument": 3}
    memory = {f"{name}_size_in_bytes": size for name, size in sizes.items()}
    memory["peak_memory_in_bytes"] = 11
    compiled = SimpleNamespace(
        memory_analysis=lambda: SimpleNamespace(**memory), as_text=lambda: "text"
    )
    traced = SimpleNamespace(lower=lambda: SimpleNamespace(compile=lambda: compiled))
    assert _compiled(traced) == Buffers(11, 3, "text", "")


def flops(**changes: str) -> float:
    return jaxpr_flops(trace(open_cycle(recipe(**changes))).jaxpr)


def test_plan_flops_agree_with_the_compilers() -> None:
    # One critic turn: the compiler counts a loop's body once, so the two may be compared. Products
    # count alike in both; what elementwise work costs is a convention, and little in a wide net.
    wide = recipe(distill__critic_turns="1", model__width="128")
    traced = trace(open_cycle(wide))
    counted = traced.lower().compile().cost_analysis()["flops"]
    assert jaxpr_flops(traced.jaxpr) == pytest.approx(counted, rel=0.05)


def test_plan_counts_critic_turns(one_device: Plan) -> None:
    two, four, six = (flops(distill__critic_turns=k) for k in "246")
    assert one_device.flops == two
    assert six - four == pytest.approx(four - two, rel=1e-6)


def test_plan_on_a_mesh_divides_flops_and_weights(spread: tuple[Plan, Any]) -> None:
    made = spread[0]
    cycle = open_cycle(recipe())
    assert made.num_devices == 8
    assert made.flops == pytest.approx(jaxpr_flops(trace(cycle).jaxpr) / 8, rel=1e-3)
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(cycle.state.critic.opt_state))
    held = made.owners["critic"]["optimiser"] / whole
    assert 1 / 4 <= held < 0.45  # the small arrays are on every device
    assert made.collectives["all-gather"].number > 0


def test_plan_uses_what_is_computed_again_for_the_time_alone(one_device: Plan) -> None:
    again = make_plan(recipe(model__remat="full"), until="trace")
    assert again.model_flops == one_device.flops == one_device.model_flops
    assert again.flops > 1.2 * one_device.flops
    timed = again._replace(chip=CHIPS["v5e"])
    assert timed.bounds["arithmetic"] == again.flops / CHIPS["v5e"].flops
    assert timed.mfu == pytest.approx(again.model_flops / again.flops)


def owners(**changes: str) -> dict[str, dict[str, int]]:
    return _owners(open_cycle(recipe(**changes)))


def test_plan_counts_bfloat16_moments_half(one_device: Plan) -> None:
    half = owners(optim__moment_dtype="bfloat16")["generator"]
    assert half["optimiser"] == one_device.owners["generator"]["params"] + 4


def test_plan_counts_what_waits_on_the_host_apart() -> None:
    near, far = owners(), owners(mesh__offload="teacher,optimizer")
    for name, column in (("teacher", "params"), ("critic", "optimiser")):
        assert far[name][column] + far[name]["on the host"] == near[name][column]
        assert far[name][column] < 0.2 * near[name][column]  # arrays below 2,048 elements stay
    assert far["critic"]["params"] == near["critic"]["params"]


def remedy(
    monkeypatch: pytest.MonkeyPatch, fits: Callable[[ConfigDict], bool], **mesh: int
) -> tuple[str, list[ConfigDict]]:
    """Return the remedy of the tiny recipe, and what was tried, where some configs fit."""
    tried = []

    def planned(config: ConfigDict, name: str, until: str | None) -> Plan:
        assert until is None
        tried.append(config)
        return example(limit_bytes=16e9 if fits(config) else 1e9)

    monkeypatch.setattr(plan, "make_plan", planned)
    return find_remedy(recipe(), example(limit_bytes=1e9, mesh=mesh)), tried


def test_find_remedy_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried = remedy(monkeypatch, lambda c: bool(c.mesh.offload), data=1, fsdp=1)
    assert [config.model.remat for config in tried[:2]] == ["block", "full"]
    assert [config.distill.microbatches for config in tried[1:]] == [1, 2, 4, 8, 8]
    assert "fits with `config.model.remat=full` `config.distill.microbatches=8` " in found
    assert "`config.mesh.offload=teacher,optimizer`:" in found


def test_find_remedy_shards_the_weights_with_and_without_microbatches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, tried = remedy(monkeypatch, lambda c: c.mesh.fsdp == 4, data=2, fsdp=2)
    assert "`config.mesh.data=1` `config.mesh.fsdp=4`:" in found
    assert {config.mesh.fsdp for config in tried[:-1]} == {1}  # the recipe's own

    def parts_too(config: ConfigDict) -> bool:
        return config.mesh.fsdp == 4 and config.distill.microbatches == 2

    found, _ = remedy(monkeypatch, parts_too, data=2, fsdp=2)
    assert "`config.mesh.fsdp=4` `config.distill.microbatches=2`:" in found


def test_find_remedy_that_is_typed_in_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe(mesh__data="8")
    made = make_plan(config, until="trace")
    # Only what the owners hold is traced, and of that rematerialisation saves nothing.
    limit = 0.7 * made.peak_bytes
    monkeypatch.setattr(plan, "_limit", lambda *arguments: limit)
    monkeypatch.setattr(plan, "_model_flops", lambda *arguments: 1.0)  # not traced
    found = find_remedy(config, made, until="trace")
    typed = as_flags(found, (), keys=True)
    flags = dict(flag[len("--config.") :].split("=") for flag in typed.split(":")[0].split()[3:])
    assert flags == {"model.remat": "full", "mesh.data": "1", "mesh.fsdp": "8"}
    apply_overrides(config, flags)
    assert (config.model.remat, config.mesh.data, config.mesh.fsdp) == ("full", 1, 8)


@pytest.mark.parametrize(
    ("batch", "parts"), [(1, []), (35, [5, 35]), (8, [2, 4, 8]), (6, [2, 6]), (97, [])]
)
def test_parts_divide_the_batch_of_a_device(batch: int, parts: list[int]) -> None:
    assert _parts(batch) == parts


def test_sweep_shows_what_does_not_divide_and_plans_the_rest() -> None:
    config = recipe(mesh__data="-1")
    refused, made = sweep(config, ["local"], [12, 16], until="trace")
    assert isinstance(refused, Unplanned)
    assert isinstance(made, Plan)
    assert made.batch_size == 16
    # 16 is the nearest multiple of the eight devices of these tests.
    assert refused == Unplanned("local", 8, 12, "batch 12 does not divide over 8 chips, try 16.")
    row = sweep_table([refused, made]).splitlines()[1].split()
    assert row[:6] == ["local", "8", "12", "-", "-", "NO"]
    assert " ".join(row[10:]) == "NO: batch 12 does not divide over 8 chips, try 16."


def test_sweep_says_where_layers_share_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "make_plan", lambda config, name, until: example())
    config = recipe(mesh__data="-1", mesh__tensor="2")
    refused, _ = sweep(config, ["local"], [6, 8])
    assert isinstance(refused, Unplanned)
    assert "does not divide over 4 shards (data x fsdp), try 8" in refused.reason


@pytest.mark.parametrize(("name", "stage"), [("local", "program"), ("v5e:2x2", "buffers")])
def test_make_plan_goes_as_far_as_the_machine_is_fast(
    monkeypatch: pytest.MonkeyPatch, name: str, stage: str
) -> None:
    stages = []

    def reach(stage: str) -> Callable[..., Buffers]:
        return lambda *arguments: stages.append(stage) or Buffers(1, 0, "", "")

    here = CHIPS["v5e"], jax.devices()[:4], 4
    monkeypatch.setattr(plan, "machine", lambda name: here)
    monkeypatch.setattr(plan, "_compiled", reach("program"))
    monkeypatch.setattr(plan, "assign_buffers", reach("buffers"))
    assert make_plan(recipe(), name).is_compiled
    assert stages == [stage]


@pytest.mark.slow
def test_plan_of_a_slice_agrees_with_tpus_compiler() -> None:
    pytest.importorskip("libtpu", reason="libtpu, TPU's compiler, is not installed (not in CI)")
    config = tiny_unet.get_config()
    apply_overrides(config, {"mesh.fsdp": "-1", "model.model_channels": "64"})
    traced, compiled = (make_plan(config, "v5e:2x2", until=until) for until in ("trace", "buffers"))
    assert (traced.owners, traced.flops) == (compiled.owners, compiled.flops)
    assert traced.peak_bytes < compiled.peak_bytes < compiled.limit_bytes == 15.75 * 2**30
    # docs/scaling.md: gradients of the generator once, of critic and head in each of two turns (and
    # some padding), by reduce-scatters all but the small ones.
    state = open_cycle(config).state
    network, head = (
        sum(4 * leaf.size for leaf in jax.tree.leaves(player.params))
        for player in (state.generator, state.discriminator)
    )
    moved = compiled.collectives
    reduced = moved["all-reduce"].num_bytes + moved["reduce-scatter"].num_bytes
    assert reduced == pytest.approx(network + 2 * (network + head), rel=0.01)
    assert moved["all-reduce"].num_bytes < 0.1 * reduced
    # Weights are gathered for each version of them, some already rounded to bfloat16.
    gathered = 4 * network + head + 2 * (network + head)
    assert 0.5 * gathered < moved["all-gather"].num_bytes < 1.01 * gathered


def test_plan_of_a_gpu_that_is_here_has_its_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = chip_of("NVIDIA L4")
    monkeypatch.setattr("dmd2_jax.plan.cycle.chip_of", {"cpu": gpu}.get)
    made = make_plan(recipe(), until="trace")
    assert made.seconds == pytest.approx(made.flops / 121e12)
    assert made.limit_bytes == 24e9  # where the backend does not say what it grants
    assert "peaks used    L4, a chip: 121 TFLOP/s bfloat16" in plan_table(made)


@pytest.mark.parametrize(
    "text",
    [
        "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (34.50G) exceeds available HBM (15.75G). HLO module: jit_cycle.",
        "Ran out of memory in memory space hbm. Used 34.50G of 15.75G hbm.",
    ],
)
def test_plan_reads_what_the_compiler_asked_for(text: str) -> None:
    assert _asked_for(text) == int(34.5 * 2**30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh__data": "3", "mesh__fsdp": "4"}, "which takes 12 devices"),
        ({"mesh__data": "8", "distill__batch_size": "12"}, "try 16"),
        ({"mesh__rules": "'nothing=-:fsdp'"}, "no parameter's path matches 'nothing'"),
        ({"mesh__offload": "techer"}, r"offload has \['techer'\], expected names of"),
        ({"mesh__rules": "'kernel'"}, "expected PATTERN=AXIS:AXIS"),
        ({"distill__microbatches": "3"}, "microbatches=3 must divide batch_size=8; try 2"),
    ],
)
def test_make_plan_refuses_before_it_compiles(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(recipe(**changes))


@pytest.mark.parametrize("name", ["v5x:4x4", "v5e", "v5e:16", "gpu:8"])
def test_make_plan_names_the_nearest_topology(name: str) -> None:
    with pytest.raises(ValueError, match="expected CHIP:SHAPE with a chip of .* did you mean"):
        make_plan(recipe(), name)


def test_traced_plan_knows_what_needs_no_compiler(
    one_device: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmd2_jax.plan.plan._compiled", None)  # a call would fail
    traced = make_plan(recipe(), until="trace")
    assert (traced.owners, traced.flops) == (one_device.owners, one_device.flops)
    assert traced.peak_bytes == sum(sum(held.values()) for held in traced.owners.values())
    text = plan_table(traced)
    assert "traced, not compiled, in" in text
    assert "memory traffic" not in text


def test_plan_until_buffers_agrees_with_the_whole_compilation(one_device: Plan) -> None:
    buffers = make_plan(recipe(), until="buffers")
    assert buffers.peak_bytes == pytest.approx(one_device.peak_bytes, rel=0.02)
    same = ("owners", "flops", "num_bytes", "collectives", "is_compiled", "fits")
    assert [getattr(buffers, name) for name in same] == [getattr(one_device, name) for name in same]


def test_plan_until_buffers_that_is_refused_needs_what_the_compiler_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 34.50G of 15.75G hbm."
    monkeypatch.setattr(plan, "assign_buffers", lambda config, name: Buffers(0, 0, "", said))
    refused = make_plan(recipe(), until="buffers")
    assert not refused.fits
    assert refused.peak_bytes == int(34.5 * 2**30)


PROGRAM = "HloModule m\n\n%loop {\n  a\n}\n\nENTRY %main {\n  b\n}\n\n"


def test_program_is_whole_with_the_end_of_its_entry_only(tmp_path: Path) -> None:
    file = tmp_path / "program.txt"
    for size in range(len(PROGRAM)):
        file.write_text(PROGRAM[:size])
        assert not is_whole(file)
    file.write_text(PROGRAM)
    assert is_whole(file)


def test_compiler_killed_while_it_writes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def killed(words: list[str], **options: object) -> subprocess.Popen:
        stem = f"{words[-1]}/jit_cycle.after_optimizations"
        code = f"""
            import os, signal
            open({stem + "-memory-usage-report.txt"!r}, "w").write("Memory Space: default")
            open({stem + ".txt"!r}, "w").write({PROGRAM[:-5]!r})
            os.kill(os.getpid(), signal.SIGKILL)
        """
        return start([sys.executable, "-c", textwrap.dedent(code)], **options)

    monkeypatch.setattr(subprocess, "Popen", killed)
    with pytest.raises(ChildProcessError, match=r"\(exit code -9; -9: this machine's"):
        assign_buffers(recipe(), "local")


def test_compiler_that_says_nothing_of_memory_is_an_error_with_its_last_words() -> None:
    with pytest.raises(ChildProcessError, match=r"(?s)exit code 1.*expected CHIP:SHAPE"):
        assign_buffers(recipe(), "v5x:4x4")


def test_recipes_mesh_keys_are_checked() -> None:
    with pytest.raises(match="mesh.fsdp=0, expected -1"):
        make_plan(recipe(mesh__fsdp="0"))
