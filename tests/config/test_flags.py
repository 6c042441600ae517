"""A dataclass's fields as flags: types, defaults, help, and what is refused."""

import argparse
import dataclasses
from collections.abc import Mapping

import pytest

from dmd2_jax.config.flags import (
    add_flags,
    as_flags,
    comma_separated,
    count,
    flag,
    flag_names,
    given,
    nearest_flag,
    options_from,
    spelt,
    unknown_flags,
)


@dataclasses.dataclass(frozen=True)
class Options:
    source: str = flag("what to read", positional=True, metavar="SRC")
    workdir: str = flag("the run folder", metavar="DIR")
    target: str | None = flag("what to write", positional=True, default=None)
    number: int = flag("how many", default=0)
    rate: float = flag("of 100 %", default=0.5, group="rates")
    decay: float | None = flag("of the average", default=None)
    force: bool = flag("replace it", default=False)
    kind: str = flag("of file", default="raw", choices=("raw", "png"))
    classes: tuple[int, ...] = flag("to draw; default: all", default=())
    names: tuple[str, ...] = flag("to measure", default=("a", "b"))
    prompt: tuple[str, ...] = flag("may be repeated", default=(), repeated=True)
    batches: tuple[int, ...] = flag(
        "sizes", default=(), parse=comma_separated(count, "whole numbers from 1 like 8,16")
    )
    span: tuple[int, ...] | None = flag(
        "to trace", default=None, parse=comma_separated(int), const=(1, 3)
    )
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="it", allow_abbrev=False)
    add_flags(made, Options, {"rates": "how fast"})
    return made


def options(*words: str) -> Options:
    return options_from(Options, parser().parse_args(["in", *words, "--workdir=x"]))


def test_flags_that_are_not_given_have_the_defaults_of_the_dataclass() -> None:
    assert options() == Options(source="in", workdir="x")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (("out",), "target", "out"),
        (("--number=7",), "number", 7),
        (("--rate=2",), "rate", 2.0),
        (("--decay=0.9",), "decay", 0.9),
        (("--force",), "force", True),
        (("--kind=png",), "kind", "png"),
        (("--classes=3, 7,",), "classes", (3, 7)),
        (("--names=c",), "names", ("c",)),
        (("--names=",), "names", ()),
        (("--prompt=a, b", "--prompt=c"), "prompt", ("a, b", "c")),
        (("--batches=8, 16",), "batches", (8, 16)),
        (("--span",), "span", (1, 3)),
        (("--span=2,4",), "span", (2, 4)),
    ],
)
def test_flag_gives_its_field_a_value_of_its_type(
    words: tuple[str, ...], name: str, value: object
) -> None:
    made = options(*words)
    assert getattr(made, name) == value
    assert type(getattr(made, name)) is type(value)
    assert made == dataclasses.replace(Options(source="in", workdir="x"), **{name: value})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--number=x",), "argument --number: invalid int value: 'x'"),
        (("--kind=jpeg",), "argument --kind: invalid choice: 'jpeg'"),
        (("--classes=three",), "argument --classes: 'three', expected numbers like 0,1,2"),
        (("--batches=8,",), "argument --batches: '8,', expected whole numbers from 1 like 8,16"),
        (("--batches=0",), "argument --batches: '0', expected whole numbers from 1 like 8,16"),
        (("--numb=1",), "unrecognized arguments: --numb=1"),
        (("--overrides=1",), "unrecognized arguments: --overrides=1"),
    ],
)
def test_flag_refuses_what_is_not_of_its_type(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options(*words)
    assert message in capsys.readouterr().err


def test_field_without_default_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([])
    assert "required: SRC, --workdir" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "SRC what to read",
        "--workdir DIR the run folder",
        "--number N how many; default: 0",
        "--decay X of the average",
        "--force replace it",
        "--kind {raw,png} of file; default: raw",
        "--classes N to draw; default: all",
        "--names NAMES to measure; default: a,b",
        "--rate X of 100 %; default: 0.5",
    ],
)
def test_help_says_each_flag_once_with_its_default(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    told = [" ".join(it.split()) for it in parser().format_help().splitlines()]
    assert told.count(line) == 1


def test_help_has_the_groups_with_their_descriptions() -> None:
    assert "\nrates:\n  how fast\n\n  --rate" in parser().format_help()


def test_options_from_passes_on_what_is_no_flag() -> None:
    words = parser().parse_args(["in", "--workdir=x"])
    assert options_from(Options, words, overrides={"seed": "1"}).overrides == {"seed": "1"}


def test_given_names_what_differs_from_the_defaults() -> None:
    made = Options(source="in", workdir="x", number=0, rate=0.7, prompt=("a",))
    assert given(made, ("rate", "number", "prompt", "decay")) == ["rate", "prompt"]


def test_flag_names_leaves_out_places_and_what_is_no_flag() -> None:
    assert {"workdir", "number"} <= flag_names(Options)
    assert not {"source", "overrides"} & flag_names(Options)


@pytest.mark.parametrize(
    ("keys", "typed"),
    [
        (True, "--seed=-1 with --workdir, expected `num=1`; set --config.mesh.data=8, see `dmd2`."),
        (
            False,
            "--seed=-1 with --workdir, expected `num=1`; set `config.mesh.data=8`, see `dmd2`.",
        ),
    ],
)
def test_as_flags_writes_what_can_be_typed(keys: bool, typed: str) -> None:
    said = "`seed=-1` with `workdir=`, expected `num=1`; set `config.mesh.data=8`, see `dmd2`."
    assert as_flags(said, {"seed", "workdir"}, keys=keys) == typed


def test_spelt_writes_names_of_flags_with_underscores_and_leaves_values_alone() -> None:
    words = ["make-pairs", "--dry-run", "--num-x=a-b", "--prompt", "a-b", "--", "--not-a-flag"]
    expected = ["make-pairs", "--dry_run", "--num_x=a-b", "--prompt", "a-b", "--", "--not-a-flag"]
    assert spelt(words) == expected


def test_unknown_flags_are_those_written_as_flags_alone() -> None:
    words = ["--sed=1", "--seed=--x", "--prompt", "--two words", "-1", "--", "--not-a-flag"]
    assert unknown_flags(words, {"seed", "prompt"}) == ["--sed=1"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--dryrun", "; did you mean --dry_run?"),
        ("--sed=1", "; did you mean --seed?"),
        ("--zzz", ""),
        ("stray", ""),
    ],
)
def test_nearest_flag_names_what_may_be_meant(word: str, said: str) -> None:
    assert nearest_flag(word, ["seed", "dry_run", "workdir"]) == said
