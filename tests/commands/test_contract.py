"""What every command offers, from the command line and from Python, and one of the user's own."""

import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dmd2_jax.commands import main
from dmd2_jax.commands.data import Options, run
from dmd2_jax.config.refused import Refused
from tests.tiny import dmd2, refused

ROOT = Path(__file__).resolve().parents[2]
FILES = main._files()
COMMANDS = sorted(FILES)
OWN = '''"""Count sheep, 100 % of them.

example:
  dmd2 lab_of_tests.sheep --number=3
"""

import dataclasses
import os
import signal

from dmd2_jax.config.flags import flag
from dmd2_jax.config.refused import Refused

RESUMES = {resumes}


@dataclasses.dataclass(frozen=True)
class Options:
    number: int = flag("of sheep", default=2)
    overrides: dict = dataclasses.field(default_factory=dict)


def run(options):
    {body}
'''


def door(name: str) -> ModuleType:
    """Return the module that Python imports a command from."""
    return importlib.import_module(f"dmd2_jax.commands.{name.replace('-', '_')}")


def module(name: str) -> ModuleType:
    """Return the file of a command."""
    return importlib.import_module(f"dmd2_jax.commands.{main._dotted(FILES[name])}")


def fields(name: str) -> list[dataclasses.Field]:
    return [it for it in dataclasses.fields(door(name).Options) if it.metadata]


def help_of(name: str) -> str:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert dmd2(name, "--help") == 0
    return told.getvalue()


def own(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, resumes: bool = False) -> str:
    """Write a command outside of the package; return its name."""
    (folder / "lab_of_tests").mkdir()
    file = folder / "lab_of_tests" / "sheep.py"
    file.write_text(OWN.format(body=body, resumes=resumes))
    monkeypatch.syspath_prepend(folder)
    for name in ("lab_of_tests", "lab_of_tests.sheep"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "lab_of_tests.sheep"


def test_commands_are_found() -> None:
    assert {"distill", "train-teacher", "ablate", "report", "make-pairs"} <= set(COMMANDS)
    assert not {"main", "old"} & set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_a_docstring_options_and_run(name: str) -> None:
    found = door(name)
    assert found.Options is module(name).Options and found.run is module(name).run
    assert re.fullmatch(r"[A-Z].*\.", (module(name).__doc__ or "").partition("\n")[0])
    assert found.Options.__dataclass_params__.frozen
    assert found.run.__doc__ and list(inspect.signature(found.run).parameters) == ["options"]
    others = [it.name for it in dataclasses.fields(found.Options) if not it.metadata]
    assert others in ([], ["overrides"])
    assert all(it.metadata["flag"].help for it in fields(name))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_every_flag_with_its_default(name: str) -> None:
    text = help_of(name)
    assert re.search(rf"^examples?:\n  dmd2 {name}\b", text, re.M)
    assert ("--config.optim.generator_lr" in text) == any(
        it.name == "overrides" for it in dataclasses.fields(door(name).Options)
    )
    told = " ".join(text.split())
    for it in fields(name):
        declared = it.metadata["flag"]
        shown = declared.metavar or it.name if declared.positional else f"--{it.name}"
        assert re.search(rf"^  {shown}\b", text, re.M)
        said_by_hand = "default" in declared.help
        assert not said_by_hand or it.default in (None, "", (), 0), it.name
        is_said = not said_by_hand and type(it.default) in (str, int, float) and it.default != ""
        assert declared.help + (f"; default: {it.default}" if is_said else "") in told


@pytest.mark.parametrize("name", COMMANDS)
def test_command_line_and_python_make_the_same_options(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(module(name), "run", called.append)
    required = {it.name: "x" for it in fields(name) if it.default is dataclasses.MISSING}
    also = {"cache": {"pipeline": "x", "images": "x"}, "export": {"workdir": "x"}}
    required |= also.get(name, {})
    plural = [it.name for it in fields(name) if it.metadata["flag"].repeated]
    positional = [it.name for it in fields(name) if it.metadata["flag"].positional]
    words = [v if k in positional else f"--{k}={v}" for k, v in required.items()]
    assert dmd2(name, *words) == 0
    values: dict[str, Any] = {k: (v,) if k in plural else v for k, v in required.items()}
    assert called == [door(name).Options(**values)]


def test_command_runs_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    run(Options())
    told = capsys.readouterr().out
    assert dmd2("data") == 0
    assert told == capsys.readouterr().out and "config.data.name is one of" in told
    with pytest.raises(Refused, match="has no --config"):
        run(Options(write="x"))


def test_help_of_no_command_waits_for_jax() -> None:
    code = (
        "import contextlib, sys\n"
        "from dmd2_jax.commands.main import main\n"
        f"for words in ([], *([name] for name in {COMMANDS})):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main([*words, '--help'])\n"
        "heavy = {'jax', 'flax', 'numpy', 'PIL', 'matplotlib', 'orbax'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: dmd2") == 1 + len(COMMANDS)


def test_help_says_how_to_run_a_command_of_ones_own() -> None:
    assert "dmd2 my_lab.my_command" in help_of("--help")


def test_own_command_has_flags_help_and_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = own(tmp_path, monkeypatch, "print(options.number, options.overrides)")
    assert dmd2(name, "--number=3", "--config.seed=1") == 0
    assert capsys.readouterr().out == "3 {'seed': '1'}\n"
    assert "--number N  of sheep; default: 2" in help_of(name)
    assert "Count sheep, 100 % of them." in help_of(name)


def test_own_command_without_options_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = own(tmp_path, monkeypatch, "pass")
    (tmp_path / "lab_of_tests" / "sheep.py").write_text("")
    assert "does not define Options and run" in refused(capsys, name)


def test_own_command_whose_options_are_no_dataclass_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = own(tmp_path, monkeypatch, "pass")
    (tmp_path / "lab_of_tests" / "sheep.py").write_text("class Options: pass\nrun = print")
    assert "expected a frozen dataclass" in refused(capsys, name)


def test_refused_input_is_one_line_and_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = own(tmp_path, monkeypatch, "raise Refused('got 1, expected 2; try 2.')")
    assert dmd2(name) == 2
    assert capsys.readouterr().err == "dmd2: got 1, expected 2; try 2.\n"
    with pytest.raises(Refused, match="got 1"):
        dmd2(name, "--debug")


def test_error_of_a_library_keeps_its_traceback_and_is_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started at the old place of the command, which is an alias for one release."""
    name = own(tmp_path, monkeypatch, "raise ValueError('shapes (2,) and (3,) differ')")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}")
    done = subprocess.run(
        [sys.executable, "-m", "dmd2_jax.main", name],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "sheep.py" in done.stderr
    assert done.stderr.endswith("ValueError: shapes (2,) and (3,) differ\n")


@pytest.mark.parametrize("resumes", [True, False])
def test_sigterm_is_no_failure_of_what_resumes(
    resumes: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    try:
        name = own(tmp_path, monkeypatch, "os.kill(os.getpid(), signal.SIGTERM)", resumes)
        assert dmd2(name) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr().err
    assert ("The same command again goes on." in told) == resumes
    assert ended == ([] if resumes else [True])


def test_command_of_one_process_refuses_to_be_one_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DMD2_DISTRIBUTED", "1")
    name = own(tmp_path, monkeypatch, "pass")
    assert f"`dmd2 {name}` is the work of one process" in refused(capsys, name)
