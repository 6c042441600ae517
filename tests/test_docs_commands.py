"""Every command line of README, docs and recipes is run by a test, or says that it is not.

A line of a block is run as it stands there, in the folder that tests/desk.py sets out, or by the
test that ELSEWHERE names. A line that is not run says so to its reader, with the reason:

- `# not run here: WHY` behind it, or in a line of its own for those below it in the block;
  `# not in the tests: WHY` where it was run by hand;
- a page at its head: "The commands of this page are **not run here**";
- a recipe in its docstring: "Not run here".

What stands in a sentence is read by the parsers alone (test_docs.py).
"""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmd2_jax.config.load import load_config
from dmd2_jax.training import student
from tests.desk import DRY, ROOT, same, set_out
from tests.test_docs import PAGES, blocks, said_by
from tests.tiny import dmd2

RECIPES = sorted(ROOT.glob("configs/**/*.py"))

ELSEWHERE = {
    r"make (demo|test)": ".ci/run",  # `make test` builds the docs too
    r"pip install": "tests/test_docs.py::test_every_pip_install_is_one_that_works_from_a_clone",
    r"jupyter execute": "tests/test_notebook.py::test_digits_notebook_shows_its_result",
    r"dmd2 distill .* --config.model.resolution=128,104x152": (
        "tests/commands/test_shapes_client.py::student_run"
    ),
    r"dmd2 (cache .*FLUX.2-klein|distill --config=configs/flux2_klein)": (
        "tests/commands/test_flow_client.py::student_run"
    ),
    r"dmd2 verify .*FLUX.2-klein": (
        "tests/commands/test_verify.py::test_pipelines_of_diffusers_agree"
    ),
    r"dmd2 distill --config=configs/(z|qwen)_image": (
        "tests/commands/test_flow_client.py::student_run"
    ),
    r"dmd2 ablate": "tests/commands/test_ablate.py::story",
    r"dmd2 plan": "tests/commands/test_plan.py::test_every_documented_plan_passes_the_checks",
    r"dmd2 (sample|export) --workdir=runs/guided": (
        "tests/sampling/test_scale_pipelines.py::test_the_commands_take_the_scale_of_run_and_export"
    ),
    r"dmd2 (sample|evaluate|export) .*--which=best": (
        "tests/commands/test_resume.py::"
        "test_distillation_measures_fid_as_the_command_does_and_keeps_the_best"
    ),
    r"dmd2 verify .*--weights": (
        "tests/commands/test_verify.py::test_run_of_a_student_brings_its_weights_and_its_steps"
    ),
    r"dmd2 verify": "tests/commands/test_verify.py::test_pipelines_of_diffusers_agree",
    r"python -m examples.photographs.make": (
        "tests/example_scripts/test_photographs.py::test_make_writes_tiles_of_real_photographs"
    ),
    r"python -m examples.captioned_digits.make": "tests/captioned.py::made",
}
"""How a line begins that another test runs -> that test, or what CI starts."""

REAL = {
    "distill": "tests/tiny.py::student_run",
    "make-pairs": "tests/training/test_pairs.py::test_distill_takes_the_pairs_of_the_command",
    "serve": "tests/commands/serve/test_page.py::served",
    "train-teacher": "tests/tiny.py::teacher_run",
}
"""Commands whose lines are run with --dry_run here -> where the command is run whole."""

RECIPE_OF = {
    "runs/student": "digits",
    "runs/sdxl": "sdxl_four_step",
    "runs/lora": "sdxl_four_step_lora",
    "runs/sd35_medium": "sd35_medium",
    "runs/captioned/student": "captioned_digits",
}
"""Runs of the docs -> their recipe."""

_COMMAND = re.compile(
    r"\s*((?:for .*; do )?(?:dmd2|python|pip|make|git|gcloud|hf|jupyter|tensorboard|ssh|tfds"
    r"|docker|kubectl|launch/\S+\.sh) .*)"
)
_MARK = re.compile(r"not run here|not in the tests")


def unmarked(text: str) -> Iterator[str]:
    """Yield the command lines in blocks that do not say that they are not run."""
    for block in blocks(text):
        is_marked = False
        for line in block.splitlines():
            if line.lstrip().startswith("#"):
                is_marked = is_marked or bool(_MARK.search(line))
            command, _, comment = re.sub(r"\s#", "\n", line, count=1).partition("\n")
            found = _COMMAND.match(command)
            is_synopsis = " [--" in command
            if found and not (is_marked or is_synopsis or _MARK.search(comment)):
                yield " ".join(found[1].split())


def is_marked_whole(file: Path, text: str) -> bool:
    """Return whether a page at its head, or a recipe anywhere, says that it is not run."""
    if file in RECIPES:
        return "not run here" in " ".join(text.split()).lower()
    return "commands of this page are **not run here**" in text.partition("\n## ")[0]


def lines() -> dict[str, list[str]]:
    """Return each line that has to be run, and the pages and recipes that have it."""
    found: dict[str, list[str]] = {}
    for file in [*PAGES, *RECIPES]:
        if not is_marked_whole(file, text := said_by(file)):
            for line in unmarked(text):
                found.setdefault(line, []).append(file.stem)
    return found


LINES = lines()
_STARTS = {line: [it for it in ELSEWHERE if re.match(it, line)] for line in LINES}
ELSEWHERE_RUN = {line: ELSEWHERE[starts[0]] for line, starts in _STARTS.items() if starts}


def test_lines_are_found_and_marks_are_seen() -> None:
    assert len(LINES) > 90
    page = "```\n{}\n```\n"
    assert [*unmarked(page.format("dmd2 data  --config=x  # look"))] == ["dmd2 data --config=x"]
    assert [*unmarked(page.format("# hours\ndmd2 data"))] == ["dmd2 data"]
    for mark in ("not run here: hours", "not in the tests: hours"):
        assert [*unmarked(page.format(f"dmd2 data # {mark}\ndmd2 new"))] == ["dmd2 new"]
        assert [*unmarked(page.format(f"dmd2 new\n# {mark}\ndmd2 data\ndmd2 data"))] == ["dmd2 new"]


@pytest.mark.parametrize("place", sorted({*ELSEWHERE.values(), *REAL.values()}))
def test_what_runs_lines_elsewhere_is_there(place: str) -> None:
    file, _, name = place.partition("::")
    source = (ROOT / file).read_text()
    if name:
        assert name in {it.name for it in ast.parse(source).body if isinstance(it, ast.FunctionDef)}
    else:
        assert re.search(r"\bmake test\b", source)


@pytest.mark.parametrize(("run", "recipe"), RECIPE_OF.items())
def test_averages_and_checkpoints_are_those_that_the_recipe_makes(run: str, recipe: str) -> None:
    """Tiny runs stand in for all: whether the run that is meant has them, they cannot tell."""
    config = load_config(recipe)
    for line in LINES:
        words = shlex.split(line)
        if run in words or f"--workdir={run}" in words:
            flags = dict(word.partition("=")[::2] for word in words)
            decay, step = float(flags.get("--ema", 0)), int(flags.get("--checkpoint", 0))
            assert not decay or decay in config.optim.ema_decays, line
            assert step % config.log.checkpoint_every == 0 and step <= config.distill.cycles, line


def test_every_table_is_of_lines_that_are_there() -> None:
    assert set(ELSEWHERE.values()) == {*ELSEWHERE_RUN.values()}
    assert set(DRY) == set(REAL)


RUN = {same(line): line for line in reversed(LINES) if line not in ELSEWHERE_RUN}


@pytest.mark.parametrize("line", [*reversed(RUN.values())], ids=str)
def test_every_command_runs_or_says_that_it_is_not_run(
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert line.startswith("dmd2 "), (
        f"{LINES[line]}: no test runs {line!r}; name one in ELSEWHERE, or mark the line"
    )
    if line.startswith("dmd2 serve"):
        pytest.importorskip("gradio", reason="needs the extra serve")
    if "objectives=" not in line:  # the programs of recipes are traced by their own tests
        monkeypatch.setattr(student, "trace", lambda job: None)
    words = set_out(tmp_path, line)
    monkeypatch.chdir(tmp_path)
    for name in [it for it in sys.modules if it.partition(".")[0] == "my_lab"]:
        monkeypatch.delitem(sys.modules, name)  # another page's
    assert dmd2(*words) == 0, f"{LINES[line]}: {capsys.readouterr().err}"
