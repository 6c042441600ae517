"""`dmd2 plan`: what it prints, what it refuses, and that every documented line of it is planned."""

import contextlib
import io
import math
import re
import shlex
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from dmd2_jax.config.refused import pip_install
from dmd2_jax.plan import plan
from dmd2_jax.plan.chips import CHIPS, Chip, nearest
from dmd2_jax.plan.cycle import LOCAL
from dmd2_jax.plan.tables import Plan, Unplanned
from tests.plans import example
from tests.tiny import RECIPE, dmd2

ROOT = Path(__file__).resolve().parents[2]


def test_plan_command_prints_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("plan", f"--config={RECIPE}") == 0
    text = capsys.readouterr().out
    assert text.startswith("tiny on local: 1 chips, 1 devices, mesh data=1, fsdp=1, tensor=1")
    for word in ("discriminator", "arithmetic", "compiled in", "no published peaks of 'cpu'"):
        assert word in text


def test_plan_command_compares_batches(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("plan", f"--config={RECIPE}", "--batches=8", f"--sweep={LOCAL},{LOCAL}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == 2 * [["local", "1", "8"]]


def test_plan_command_traces_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("plan", f"--config={RECIPE}", "--until=trace") == 0
    assert "traced, not compiled" in capsys.readouterr().out
    assert dmd2("plan", f"--config={RECIPE}", "--until=trace", "--remedy") == 2
    assert "--until=trace with --remedy, which compiles" in capsys.readouterr().err


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(*arguments: object) -> None:
        raise AssertionError("a program is traced")

    monkeypatch.setattr("dmd2_jax.plan.plan.trace", trace)


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
    assert f"topology={name}, expected CHIP:SHAPE" in text
    assert f"did you mean one of ['{meant}'" in text


@pytest.mark.usefixtures("nothing_compiled")
def test_plan_command_names_the_extra_of_a_missing_compiler(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    text = refusal(capsys, "--topology=v5e:4x4")
    assert "topology=v5e:4x4 needs the package libtpu, which is not installed" in text
    assert pip_install("plan") in text


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep="], "argument --sweep: '', expected topologies like"),
        (["--sweep=local,"], "argument --sweep: 'local,', expected topologies like"),
        (["--sweep=local,v5e:3x5"], "topology=v5e:3x5, expected CHIP:SHAPE"),
        (["--batches="], "argument --batches: '', expected whole numbers from 1"),
        (["--batches=8,-8"], "argument --batches: '8,-8', expected whole numbers from 1"),
        (["--batches=0"], "argument --batches: '0', expected whole numbers from 1"),
        (["--batches=8.5"], "argument --batches: '8.5', expected whole numbers from 1"),
        (
            ["--batches=12,20", "--config.mesh.data=8"],
            "local, batch 12: batch 12 does not divide over 8 chips, try 16",
        ),
        (
            ["--batches=10,6", "--config.distill.microbatches=4"],
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


class Nowhere:
    """A device of which only the number counts."""

    platform = "tpu"


def slice_of(name: str) -> tuple[Chip | None, list[Nowhere], int]:
    """Stand in for `machine`, without TPU's compiler: a slice of whole chips, or one device."""
    if name == LOCAL:
        return None, [Nowhere()], 1
    assert nearest(name, 1) == [name]
    kind, _, shape = name.partition(":")
    count = math.prod(int(size) for size in shape.split("x"))
    return CHIPS[kind], [Nowhere() for _ in range(count)], count


@pytest.fixture
def checked_only(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let plans be checked, not made; return the list of those that pass."""
    made: list[str] = []

    def check(config: ConfigDict, name: str, until: str | None) -> Plan:
        variant = plan._with_batch(config, name, config.distill.batch_size)
        assert not isinstance(variant, Unplanned), variant.reason
        made.append(name)
        return example(topology=name)

    monkeypatch.setattr(plan, "machine", slice_of)
    monkeypatch.setattr(plan, "make_plan", check)
    monkeypatch.chdir(ROOT)
    return made


def documented() -> list[str]:
    """Return the flags of every line "dmd2 plan --config=..." that users read."""
    files = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/*.md")]
    files += sorted(ROOT.glob("configs/**/*.py"))
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        dmd2("plan", "--help")
    texts = [told.getvalue(), *(file.read_text() for file in files)]
    joined = re.sub(r"\\\n\s*", "", "\n".join(texts))
    lines = re.findall(r"dmd2 plan +(--config=[^\n`#]*)", joined)
    return sorted({line.strip() for line in lines if "SLICE" not in line})


DOCUMENTED = documented()


def test_documented_plans_are_found() -> None:
    told = " ".join(DOCUMENTED)
    assert len(DOCUMENTED) >= 9
    for words in ("--sweep=", "configs/sdxl_four_step.py", "tests/tiny_unet.py", "--until=trace"):
        assert words in told


@pytest.mark.parametrize("line", DOCUMENTED)
def test_every_documented_plan_passes_the_checks(
    line: str, checked_only: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    assert dmd2("plan", *words) == 0, capsys.readouterr().err
    assert "NO:" not in capsys.readouterr().out
    swept = re.search(r"--sweep=(\S+)", line)
    assert len(checked_only) == (len(swept[1].split(",")) if swept else 1)


def test_plan_command_shows_slices_that_do_not_divide(
    checked_only: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("plan", "--config=configs/imagenet64.py", "--sweep=v5e:2x4,v5e:8x8,v5p:2x4x4")
    assert dmd2(*words) == 0
    _, _, large, small = capsys.readouterr().out.splitlines()
    assert large.endswith("NO: batch 280 does not divide over 64 chips, try 256.")
    assert small.endswith("NO: batch 280 does not divide over 32 chips, try 288.")
    assert checked_only == ["v5e:2x4"]


def test_plan_command_refuses_a_sweep_without_any_plan(
    checked_only: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dmd2("plan", "--config=configs/imagenet64.py", "--sweep=v5e:8x8,v5p:2x4x4") == 2
    message = capsys.readouterr().err
    assert "v5e:8x8, batch 280: batch 280 does not divide over 64 chips, try 256." in message
    assert checked_only == []


HINT = "add --remedy: it compiles variants"


@pytest.mark.parametrize(
    ("words", "fits", "said"),
    [
        ([], False, HINT),
        ([], True, None),
        (["--remedy"], False, "it fits with less"),
        (["--until=trace"], False, "add --remedy in place of --until=trace: it compiles"),
        (["--sweep=v5e:2x4,v5e:2x2"], False, "what would make a slice fit, it alone with --remedy"),
        (["--sweep=v5e:2x4,v5e:2x2"], True, None),
    ],
)
def test_plan_command_says_how_to_make_it_fit(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    fits: bool,
    said: str | None,
) -> None:
    made = example(limit_bytes=16e9 if fits else 1e9)
    monkeypatch.setattr(plan, "machine", slice_of)
    monkeypatch.setattr(plan, "make_plan", lambda config, name, until: made)
    monkeypatch.setattr(plan, "find_remedy", lambda config, made, until: "it fits with less")
    assert dmd2("plan", f"--config={RECIPE}", *words) == 0
    text = capsys.readouterr().out
    assert (said or "") in text
    assert ("remedy" in text) == (said is not None and "fits with less" not in said)
