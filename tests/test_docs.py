"""What README and docs tell people to type is what the program takes.

Commands are read by the command's own parser and their config keys by the real recipes; no data are
opened and nothing is trained. Whether what they say is true, the tests of the commands show.
"""

import ast
import importlib
import re
import runpy
import shlex
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import setuptools

from dmd2_jax.commands import main
from dmd2_jax.config import text as texts
from dmd2_jax.config.check import validate
from dmd2_jax.config.defaults import get_config
from dmd2_jax.config.family import family_names
from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading import captions, decode, edm_labels, npz, parquet, records, zip_file
from dmd2_jax.data.reading.dataset import MEMORY_LIMIT
from tests.tiny import dmd2

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), ROOT / "launch" / "README.md"]
_BLOCK = re.compile(r"^(```|~~~)[^\n]*\n(.*?)^\1|((?:^ {4,}\S[^\n]*\n)+)", re.M | re.S)


def blocks(text: str) -> Iterator[str]:
    """Yield the fenced and the indented blocks of a page, lines that end in a backslash joined."""
    for found in _BLOCK.finditer(text):
        yield re.sub(r"\\\n\s*", " ", found[2] or found[3])


def lines_of(text: str) -> Iterator[str]:
    """Yield the command lines of a page's blocks, without what a shell loop has around them."""
    for block in blocks(text):
        for line in block.splitlines():
            if found := re.match(r"\s*(?:for .*; do )?(dmd2 .*|python -m (?:bench|exam).*)", line):
                yield re.sub(r"; done\b.*|\s#.*", "", found[1]).strip()


def spans_of(text: str) -> Iterator[str]:
    """Yield the command lines, whole or in part, that stand in sentences."""
    prose = _BLOCK.sub("\n", text)
    for span in re.findall(r"`([^`]+)`", prose):
        flat = " ".join(span.split())
        if re.match(r"(?:dmd2 [a-z]|python -m (?:benchmarks|examples)|--config\.|PLAN )", flat):
            yield flat.replace("PLAN ", "dmd2 plan --config=digits ")


def said_by(file: Path) -> str:
    """Return a page, or the docstring of a file of Python as a block of one."""
    text = file.read_text()
    if file.suffix == ".py":
        text = textwrap.indent(ast.get_docstring(ast.parse(text)) or "", "    ") + "\n"
    return text


FILES = [*PAGES, *sorted(ROOT.glob("configs/**/*.py"))]
FILES += [main._HERE / file for file in main._files().values()]
LINES = sorted({line for file in FILES for line in lines_of(said_by(file))})


def test_pages_have_commands() -> None:
    assert len(LINES) > 130
    assert sum(len(list(spans_of(page.read_text()))) for page in PAGES) > 100


def module_of(command: str) -> types.ModuleType:
    files = main._files()
    assert command in files, f"there is no command {command!r}"
    return importlib.import_module(f"{main._PACKAGE}.{main._dotted(files[command])}")


@pytest.mark.parametrize("line", LINES)
def test_every_documented_command_is_one_that_would_be_taken(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    if words[0] == "python":
        assert script_takes(words[2], words[3:])
        return
    is_whole = "..." not in words and not any(word.isupper() for word in words[2:])
    module, options = module_of(words[1]), []
    monkeypatch.setattr(module, "run", options.append)
    monkeypatch.setattr("dmd2_jax.runtime.places._installed", lambda package: True)
    if not is_whole:
        takes_flags(words[1], words[2:])
        return
    assert dmd2(*words[1:]) == 0, capsys.readouterr().err
    (asked,) = options
    if hasattr(asked, "overrides"):
        accept(getattr(asked, "config", None) or "", asked.overrides, whole=words[1] != "data")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_flag_and_key_in_a_sentence_is_there(page: Path) -> None:
    for line in spans_of(page.read_text()):
        words = shlex.split(line)
        if words[0] == "python":
            assert script_takes(words[2], words[3:]), line
        elif words[0] == "dmd2":
            takes_flags(words[1], words[2:])
        else:
            takes_flags("distill", words)


def takes_flags(command: str, words: list[str]) -> None:
    """Assert that a command has each of the flags, and a config each of the keys."""
    module = module_of(command)
    names = {f"--{name}" for name in main.flags.flag_names(module.Options)}
    names |= {"--coordinator", "--num_processes", "--process_id", "--debug", "--help"}
    for word in words:
        flag, _, value = word.partition("=")
        if flag.startswith("--config.") and "KEY" not in flag:
            has_value = value and not value.isupper() and "..." not in value
            accept("", {flag.removeprefix("--config."): value} if has_value else {}, flag)
        elif flag.startswith("--") and "KEY" not in flag:
            assert f"--{flag[2:].replace('-', '_')}" in names, f"dmd2 {command} has no {flag}"


def accept(recipe: str, overrides: dict[str, str], key: str = "", whole: bool = False) -> None:
    """Assert that a recipe, or where it is the reader's own one of the families', takes keys.

    Args:
      recipe: as --config names it.
      overrides: as on the command line.
      key: must be there too.
      whole: the values must fit each other (`dmd2 data` does not look at the network).
    """
    try:
        bases = [load_config(recipe)]
    except Refused:
        bases, whole = [get_config(name) for name in family_names()], False
    said = []
    for config in bases:
        group = config
        try:
            for part in filter(None, key.removeprefix("--config.").split(".")):
                assert part in group, f"the config has no {key}"
                group = group[part]
            apply_overrides(config, overrides)
            if whole:
                validate(config)
            return
        except (Refused, AssertionError) as error:
            said.append(str(error))
    raise AssertionError(said)


def script_takes(name: str, words: list[str]) -> bool:
    """Return whether a script is there and declares the flags."""
    source = ROOT / f"{name.replace('.', '/')}.py"
    text = source.read_text()
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    own = {flag for flag in flags if not flag.startswith("--config.")} - {"--help"}
    accept("", {w.split("=")[0][9:]: w.split("=")[1] for w in words if w.startswith("--config.")})
    return all(f'"{flag}"' in text for flag in own)


@pytest.fixture(scope="module")
def extras() -> dict[str, list[str]]:
    recorded: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", recorded.update)
        patch.chdir(ROOT)
        runpy.run_path(str(ROOT / "setup.py"))
    return recorded["extras_require"]


def test_every_pip_install_is_one_that_works_from_a_clone(extras: dict[str, list[str]]) -> None:
    """dmd2_jax is on no index: it is installed from a folder, a wheel's file or an address."""
    pages = [*PAGES, *ROOT.glob("examples/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]
    found = 0
    for page in pages:
        text = page.read_text().replace('\\"', '"')
        for line in re.findall(r"pip install ([^`\n#;]+)", text):
            words = re.findall(r'"[^"]*"|\S+', line)
            given = [it.strip("\"'") for it in words if not it.startswith("-")]
            found += 1
            for it in given:
                name = re.match(r"(?:dmd2_jax|\.)\[([\w,]+)\]", it)
                assert not name or {*name[1].split(",")} <= {*extras, "NAME"}, f"{page}: {line}"
                assert not it.startswith("dmd2_jax") or " @ " in it, f"{page}: {line}"
    assert found >= 10


def test_every_make_target_in_a_page_is_one() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.M)[0].split())
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.M))
        assert named <= targets, page.name


def test_every_test_that_a_page_names_is_there_and_the_only_one() -> None:
    files = [f"/{file.relative_to(ROOT)}" for file in ROOT.glob("tests/**/test_*.py")]
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for name in set(re.findall(r"[\w/]*\btest_\w+\.py", page.read_text())):
            found = [file for file in files if file.endswith(f"/{name}")]
            assert len(found) == 1, f"{page.name} names {name}, which is {found or 'no file'}"


def test_limits_of_files_are_those_of_the_readers() -> None:
    page = (ROOT / "docs" / "files.md").read_text().partition("## Limits")[2]
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", page, re.MULTILINE))
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "MB": 10**6, "million": 10**6}

    def numbers(text: str) -> list[int]:
        found = re.findall(r"(\d[\d,]*)(?: (KiB|MiB|GiB|MB|million))?", text)
        return [int(n.replace(",", "")) * units.get(unit, 1) for n, unit in found]

    said = [n for what, most in rows.items() for n in (*numbers(most), *numbers(what))]
    pixels = [round(n, -6) for n in (decode.MAX_PIXELS, decode.MAX_BYTES)]
    assert captions._MAX_TEXT == edm_labels.MAX_LABEL_BYTES == texts._MOST_BYTES
    assert npz._MAX_RATIO == zip_file.MAX_RATIO
    assert said == [
        *pixels,
        captions._MAX_CAPTION,
        captions._MAX_TEXT,
        parquet._MOST_BYTES,
        edm_labels._MAX_CLASSES,
        records._MAX_RECORD,
        *(npz._MAX_RATIO, zip_file._SMALL, npz._SMALL),
        MEMORY_LIMIT,
    ]


def test_every_recipe_is_in_the_table_of_recipes() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    for file in ROOT.glob("configs/**/*.py"):
        assert f"](../{file.relative_to(ROOT).as_posix()})" in text, file


@pytest.mark.parametrize("page", ["recipes", "tutorials/text_to_image_lora", "ablations"])
def test_recipes_that_a_page_writes_out_are_taken(page: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    written = [it for it in re.findall(r"```python\n(.*?)```", text, re.S) if "get_config" in it]
    assert written
    for number, source in enumerate(written):
        file = tmp_path / f"recipe_{number}.py"
        file.write_text(source)
        validate(load_config(str(file)))


@pytest.mark.slow
def test_the_tutorial_of_your_own_model_runs_as_it_stands_there() -> None:
    text = (ROOT / "docs" / "tutorials" / "own_model.md").read_text()
    module = types.ModuleType("own_model")
    sys.modules[module.__name__] = module  # where dataclasses look names up
    try:
        for source in re.findall(r"```python\n(.*?)```", text, re.S):
            exec(compile(source, "own_model.md", "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    samples = np.asarray(module.samples)
    assert samples.mean(axis=0) == pytest.approx([1, 1], abs=0.1)
    assert samples.std(axis=0) == pytest.approx([0.2, 0.2], abs=0.1)


def test_the_reference_lists_every_key_and_every_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: the extra [docs]")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.config_page()
    for family in family_names():
        config = get_config(family)
        for group in config:
            keys = (
                [f"{group}.{key}" for key in config[group]]
                if group
                not in (
                    "name",
                    "seed",
                )
                else [group]
            )
            assert [key for key in keys if f"`{key}`" not in page] == []
    page = hooks.commands_page()
    for name in main._files():
        section = page.partition(f"\n## dmd2 {name}\n")[2].partition("\n## ")[0]
        flags = main.flags.flag_names(module_of(name).Options)
        assert [flag for flag in flags if f"`--{flag}" not in section] == [], name
