"""Plans: the compiler's own figures, shard sizes by hand, and the command."""

import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from dmd2_jax import plan
from dmd2_jax.config import ConfigError, apply_overrides
from dmd2_jax.plan import _asked_for, _owners, find_remedy, make_plan
from dmd2_jax.plan_buffers import Buffers, assign_buffers, is_whole
from dmd2_jax.plan_cycle import LOCAL, trace_cycle
from dmd2_jax.plan_tables import Plan, plan_table, sweep_table
from dmd2_jax.runtime.chips import CHIPS
from dmd2_jax.runtime.program_costs import Collective, jaxpr_flops
from tests.tiny import RECIPE, dmd2, get_config


def recipe(**changes: str) -> ConfigDict:
    config = get_config()
    apply_overrides(config, {key.replace("__", "."): text for key, text in changes.items()})
    return config


@pytest.fixture(scope="module")
def one_device() -> Plan:
    return make_plan(recipe())


def test_plan_counts_the_owners_bytes(one_device: Plan) -> None:
    teacher = one_device.owners["teacher"]["params"]
    generator = one_device.owners["generator"]
    assert teacher == generator["params"] == generator["average"]
    # Adam's two moments and its count of updates.
    assert generator["optimiser"] == 2 * teacher + 4
    # [K, b] images of 8 x 8 and two sets of one-hot classes, float32.
    assert one_device.owners["batch"]["params"] == 4 * 2 * 8 * (64 + 2 * 10)


def test_plan_holds_at_least_what_its_owners_hold(one_device: Plan) -> None:
    known = sum(sum(held.values()) for held in one_device.owners.values())
    assert known < one_device.peak_bytes < 40 * known
    assert one_device.limit_bytes is None
    assert one_device.fits
    assert one_device.collectives == {}


def flops(**changes: str) -> float:
    return jaxpr_flops(trace_cycle(recipe(**changes)).traced.jaxpr)


def test_plan_flops_agree_with_the_compilers() -> None:
    # One critic turn: the compiler counts a loop's body once, so the two may be compared.
    traced = trace_cycle(recipe(distill__critic_turns="1")).traced
    counted = traced.lower().compile().cost_analysis()["flops"]
    # Both count products alike; what elementwise work costs is a convention.
    assert jaxpr_flops(traced.jaxpr) == pytest.approx(counted, rel=0.2)


def test_plan_counts_critic_turns(one_device: Plan) -> None:
    two, four, six = (flops(distill__critic_turns=k) for k in "246")
    assert one_device.flops == two
    assert six - four == pytest.approx(four - two, rel=1e-6)


def test_plan_on_a_mesh_divides_flops_and_weights() -> None:
    spread = make_plan(recipe(mesh__data="2", mesh__fsdp="4", model__model_channels="16"))
    alone = trace_cycle(recipe(model__model_channels="16"))
    assert spread.num_devices == 8
    assert spread.flops == pytest.approx(jaxpr_flops(alone.traced.jaxpr) / 8, rel=1e-3)
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(alone.state.critic.opt_state))
    held = spread.owners["critic"]["optimiser"] / whole
    assert 1 / 4 <= held < 0.45  # the small arrays are on every device
    assert spread.collectives["all-gather"].number > 0


def owners(**changes: str) -> dict[str, dict[str, int]]:
    return _owners(trace_cycle(recipe(**changes)))


def test_plan_counts_bfloat16_moments_half(one_device: Plan) -> None:
    half = owners(optim__moment_dtype="bfloat16")["generator"]
    assert half["optimiser"] == one_device.owners["generator"]["params"] + 4


def test_plan_counts_what_waits_on_the_host_apart() -> None:
    wide = {"model__model_channels": "16"}
    near = owners(**wide)
    far = owners(**wide, mesh__offload="teacher,optimizer")
    for name, column in (("teacher", "params"), ("critic", "optimiser")):
        assert far[name][column] + far[name]["on the host"] == near[name][column]
        assert far[name][column] < 0.2 * near[name][column]  # arrays below 2,048 elements stay
    assert far["critic"]["params"] == near["critic"]["params"]


def test_plan_table_shows_what_waits_on_the_host() -> None:
    there = {"params": 10**9, "on the host": 2 * 10**9}
    text = plan_table(example(owners={"teacher": there}, host_bytes=2 * 10**9))
    assert [line.split() for line in text.splitlines()[3:6]] == [
        ["memory", "a", "device,", "MB", "params", "optimiser", "average", "on", "the", "host"],
        ["teacher", "1,000.0", "-", "-", "2,000.0"],
        ["activations,", "gradients,", "the", "rest", "11,000.0"],
    ]
    # A CPU's compiler has counted it with all the rest.
    text = plan_table(example(owners={"teacher": there}))
    assert "the rest" in text
    assert "9,000.0" in text


def test_find_remedy_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def planned(config: ConfigDict, name: str, until: str) -> Plan:
        assert until == "program"
        tried.append(config)
        return example(limit_bytes=16e9 if config.mesh.offload else 1e9)

    monkeypatch.setattr(plan, "make_plan", planned)
    found = find_remedy(recipe(), example(limit_bytes=1e9, mesh={"data": 1, "fsdp": 1}))
    assert [config.model.remat for config in tried[:2]] == ["block", "full"]
    assert "fits with --config.model.remat=full --config.distill.microbatches=8 " in found
    assert "--config.mesh.offload=teacher,optimizer:" in found


def example(**changes: object) -> Plan:
    plan = Plan(
        name="x",
        topology="v5e:2x4",
        chip=CHIPS["v5e"],
        num_devices=8,
        num_chips=8,
        mesh={"data": 8, "fsdp": 1, "tensor": 1},
        batch_size=64,
        images=384,
        cycles=36_000,
        owners={"teacher": {"params": 10**9}},
        peak_bytes=12 * 10**9,
        limit_bytes=16e9,
        host_bytes=0,
        refusal="",
        flops=197e12 * 0.05,
        num_bytes=int(819e9 * 0.1),
        collectives={"all-reduce": Collective(6, int(200e9 * 0.02))},
        compile_seconds=1.0,
    )
    return plan._replace(**changes)


def test_plan_takes_the_slowest_bound() -> None:
    plan = example()
    assert plan.bounds == pytest.approx({"arithmetic": 0.05, "memory": 0.1, "links": 0.02})
    assert plan.seconds == pytest.approx(0.1)
    assert plan.mfu == pytest.approx(0.5)
    text = plan_table(plan)
    assert "FITS: needs 12 GB a device, 16 GB there are" in text
    assert "3,840 images/s, MFU 50%" in text
    assert "36,000 cycles: 0.0417 days, 8 chip-hours" in text


def test_plan_of_half_a_chip_has_half_its_peaks() -> None:
    assert example(num_chips=4).seconds == pytest.approx(0.2)


def test_plan_that_was_refused_says_so() -> None:
    plan = example(refusal="RESOURCE_EXHAUSTED", peak_bytes=35 * 10**9)
    assert not plan.fits
    assert "DOES NOT FIT: needs 35 GB a device" in plan_table(plan)
    assert "NO" in sweep_table([plan, example()])


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


def test_plan_command_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("plan", f"--config={RECIPE}") == 0
    text = capsys.readouterr().out
    assert text.startswith("tiny on local: 1 chips, 1 devices, mesh data=1, fsdp=1, tensor=1")
    for word in ("discriminator", "arithmetic", "compiled in"):
        assert word in text


def test_plan_command_compares_batches(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("plan", f"--config={RECIPE}", "--batches=8", f"--sweep={LOCAL},{LOCAL}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == 2 * [["local", "1", "8"]]


def test_traced_plan_knows_what_needs_no_compiler(
    one_device: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmd2_jax.plan._compiled", None)  # a call would fail
    traced = make_plan(recipe(), until="trace")
    assert (traced.owners, traced.flops) == (one_device.owners, one_device.flops)
    assert traced.peak_bytes == sum(sum(held.values()) for held in traced.owners.values())
    text = plan_table(traced)
    assert "traced, not compiled, in" in text
    assert "memory traffic" not in text


def test_traced_plan_is_bounded_by_its_arithmetic_alone(one_device: Plan) -> None:
    traced = one_device._replace(is_compiled=False, chip=CHIPS["v5e"], limit_bytes=1e12)
    assert list(traced.bounds) == ["arithmetic"]
    assert traced.mfu == 1
    assert "only compiling says" in plan_table(traced)
    (row,) = sweep_table([traced]).splitlines()[1:]
    assert row.split()[3:7] == [">", "0.00", "1000.0", "?"]


def test_traced_plan_whose_weights_do_not_fit_says_so(one_device: Plan) -> None:
    traced = one_device._replace(is_compiled=False, limit_bytes=one_device.peak_bytes / 2)
    assert "DOES NOT FIT: needs" in plan_table(traced)


def test_plan_command_traces_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("plan", f"--config={RECIPE}", "--until=trace") == 0
    assert "traced, not compiled" in capsys.readouterr().out
    assert dmd2("plan", f"--config={RECIPE}", "--until=trace", "--remedy") == 2
    assert "--until=trace with --remedy, which compiles" in capsys.readouterr().err


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


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(*arguments: object) -> None:
        raise AssertionError("a program is traced")

    monkeypatch.setattr("dmd2_jax.plan.trace_cycle", trace)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert dmd2("plan", f"--config={RECIPE}", *words) == 2
    return capsys.readouterr().err


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("v5e:3x5", "v5e:4x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("v7:2x2", "tpu7x:2x2x1"),
        ("V5E:4x4", "v5e:4x4"),
        ("", "v5e:1x1"),
    ],
)
def test_plan_command_names_the_nearest_topology(
    capsys: pytest.CaptureFixture[str], name: str, meant: str
) -> None:
    text = refusal(capsys, f"--topology={name}")
    assert f"--topology={name}, expected CHIP:SHAPE" in text
    assert f"did you mean one of ['{meant}'" in text


@pytest.mark.usefixtures("nothing_compiled")
def test_plan_command_names_the_extra_of_a_missing_compiler(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    text = refusal(capsys, "--topology=v5e:4x4")
    assert "--topology=v5e:4x4 needs TPU's compiler, libtpu, which is not installed" in text
    assert 'pip install -e ".[plan]"' in text


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep="], "argument --sweep: '', expected topologies like"),
        (["--sweep=local,"], "argument --sweep: 'local,', expected topologies like"),
        (["--sweep=local,v5e:3x5"], "--topology=v5e:3x5, expected CHIP:SHAPE"),
        (["--batches="], "argument --batches: '', expected whole numbers from 1"),
        (["--batches=8,-8"], "argument --batches: '8,-8', expected whole numbers from 1"),
        (["--batches=0"], "argument --batches: '0', expected whole numbers from 1"),
        (["--batches=8.5"], "argument --batches: '8.5', expected whole numbers from 1"),
        (
            ["--batches=16,12", "--config.mesh.data=8"],
            "local, batch 12: batch_size=12 must be divisible by data shards=8; try 16",
        ),
        (
            ["--batches=12,10", "--config.distill.microbatches=4"],
            "local, batch 10: microbatches=4 must divide batch_size=10",
        ),
        (["--topology=local", "--sweep=local"], "got --topology=local and --sweep, expected one"),
        (["--remedy", "--batches=8"], "got --remedy with --sweep or --batches, expected it with"),
        (["--remedy=yes"], "argument --remedy: ignored explicit argument 'yes'"),
    ],
)
def test_plan_command_refuses_nonsense_before_it_compiles(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in refusal(capsys, *words)


def test_recipes_mesh_keys_are_checked() -> None:
    with pytest.raises(ConfigError, match="mesh.fsdp=0, expected -1"):
        make_plan(recipe(mesh__fsdp="0"))
