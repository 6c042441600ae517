"""The set-up itself: metadata, make targets, scripts, licence, hooks."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]
# These tests drive the Makefile itself; whoever runs pytest without make loses nothing else.
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def metadata(monkeypatch):
    recorded = {}
    monkeypatch.setattr(setuptools, "setup", recorded.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return recorded


def run_make(*args, cwd=ROOT, path=None):
    """Run make without the variables of a make that these tests may run under."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "VENV"))}
    if path is not None:
        env["PATH"] = str(path)
    return subprocess.run(
        [shutil.which("make"), *args], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_setup_extras_are_the_documented_ones(metadata):
    assert set(metadata["extras_require"]) == {
        "gpu",
        "tpu",
        "text2image",
        "tfds",
        "hub",
        "cloud",
        "plan",
        "serve",
        "tensorboard",
        "clu",
        "docs",
        "benchmarks",
        "parity",
        "dev",
    }


def test_messages_speak_of_extras_that_there_are_in_the_same_words(metadata):
    """They come from `config.refused`, which alone knows how pip is told where dmd2_jax is."""
    named = set()
    for file in (ROOT / "dmd2_jax").rglob("*.py"):
        for node in ast.walk(tree := ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and "pip_install" in ast.unparse(node):
                named |= {it.value for it in node.args if isinstance(it, ast.Constant)}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lacks":
                named.add(ast.literal_eval(node.args[2]))
        text = ast.unparse(tree)
        named |= set(re.findall(r"the extra `?\[(\w+)\]", text))
        if file.name != "refused.py":
            assert set(re.findall(r"pip install \S*\w", text)) <= {"pip install wandb"}, file
    assert {"plan", "hub", "serve", "tfds", "text2image", "tensorboard", "gpu"} <= named
    assert named <= set(metadata["extras_require"])


def test_setup_gpu_and_tpu_extras_keep_the_base_range_of_jax(metadata):
    (base,) = [r for r in metadata["install_requires"] if re.match(r"jax\W", r)]
    jax_range = base.removeprefix("jax")
    assert metadata["extras_require"]["gpu"] == ["jax[cuda12]" + jax_range]
    assert metadata["extras_require"]["tpu"] == ["jax[tpu]" + jax_range]


def test_setup_base_is_free_of_other_frameworks(metadata):
    names = {re.split(r"[^\w-]", r)[0] for r in metadata["install_requires"]}
    assert not names & {"torch", "tensorflow", "tensorflow-cpu", "diffusers", "transformers"}


def test_setup_tests_need_neither_tensorflow_nor_torch(metadata):
    names = {re.split(r"[^\w-]", r)[0] for r in metadata["extras_require"]["dev"]}
    assert not names & {"torch", "tensorflow", "tensorflow-cpu", "clu"}
    assert {"tensorboardX", "tensorflow-datasets"} <= names


def test_setup_installed_packages_satisfy_the_base_ranges(metadata):
    requirements = pytest.importorskip("packaging.requirements")
    from importlib.metadata import version

    for text in metadata["install_requires"]:
        requirement = requirements.Requirement(text)
        assert requirement.specifier.contains(version(requirement.name)), text


def test_setup_finds_every_folder_with_code(metadata):
    folders = {
        ".".join(path.relative_to(ROOT).parent.parts) for path in ROOT.glob("dmd2_jax/**/*.py")
    }
    # The wheel has the recipes under our own name.
    recipes = {
        f"dmd2_jax.{'.'.join(path.relative_to(ROOT).parent.parts)}"
        for path in ROOT.glob("configs/**/*.py")
    }
    assert set(metadata["packages"]) == folders | recipes


def test_setup_version_is_the_one_of_version_py(metadata):
    text = (ROOT / "dmd2_jax" / "version.py").read_text()
    assert f'\n__version__ = "{metadata["version"]}"\n' in text
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])


def test_setup_console_script_calls_main(metadata):
    assert metadata["entry_points"] == {"console_scripts": ["dmd2 = dmd2_jax.commands.main:main"]}


def test_setup_refuses_the_python_that_the_tools_do_not_target(metadata):
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    floor = metadata["python_requires"].removeprefix(">=")
    assert tools["mypy"]["python_version"] == floor
    assert tools["ruff"]["target-version"] == "py" + floor.replace(".", "")


@needs_make
@pytest.mark.parametrize(
    ("target", "install", "last"),
    [
        ("demo", "--editable .", "-m dmd2_jax.commands.main demo"),
        ("test", '--editable ".[dev]"', "-m pytest"),
        ("docs", '--editable ".[docs]"', "mkdocs build --strict"),
    ],
)
def test_make_sets_up_before_it_runs(tmp_path, target, install, last):
    result = run_make("-n", target, f"VENV={tmp_path}/env")
    assert result.returncode == 0, result.stderr
    places = [
        result.stdout.index(part) for part in (f'-m venv $clear "{tmp_path}/env"', install, last)
    ]
    assert places == sorted(places)


@needs_make
def test_make_test_runs_every_check():
    commands = run_make("-n", "test").stdout
    assert re.search(r"mkdocs build --strict$", commands, re.M)  # --quiet would hide warnings
    for check in (
        "ruff check .",
        "ruff format --check .",
        "nbstripout --verify",
        "/mypy",
        "mkdocs build",
    ):
        assert check in commands


@needs_make
@pytest.mark.parametrize("failing", ["", "ruff", "mypy", "mkdocs", "python"])
def test_make_test_fails_with_any_of_its_checks_and_speaks_in_order(tmp_path, failing):
    (tmp_path / "bin").mkdir()
    for name in ("ruff", "shellcheck", "nbstripout", "mypy", "mkdocs", "python", "pip"):
        tool = tmp_path / "bin" / name
        tool.write_text(f"#!/bin/sh\necho ran {name}\n[ {name} != '{failing}' ]\n")
        tool.chmod(0o755)
    for stamp in (".installed-dev", ".installed-docs"):
        (tmp_path / stamp).touch()
        os.utime(tmp_path / stamp, (2**32, 2**32))
    result = run_make("test", f"VENV={tmp_path}")
    assert (result.returncode != 0) is bool(failing)
    said = result.stdout.split("\n")
    assert said.index("ran python") < said.index("ran ruff")  # pytest's own words are not torn


@needs_make
def test_make_install_happens_once(tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("bin/pip", "bin/python", ".installed"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".installed", (2**32, 2**32))
    assert "pip" not in run_make("-n", "install", f"VENV={tmp_path}").stdout


@needs_make
def test_make_without_a_new_python_says_so_and_makes_nothing(tmp_path):
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = run_make("install", f"VENV={tmp_path}/env", f"PYTHON={old}")
    assert result.returncode != 0
    assert f"got no Python >= 3.11 (tried: {old})" in result.stderr
    assert "make install PYTHON=" in result.stderr
    assert not (tmp_path / "env").exists()


@needs_make
def test_make_clean_leaves_a_folder_that_is_no_environment(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    assert run_make("clean", "VENV=home", cwd=tmp_path).returncode == 0
    assert (tmp_path / "home" / "thesis.txt").exists()


@needs_make
def test_make_help_names_every_phony_target():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M).group(1).split()
    listed = re.findall(r"^  make (\S+)", run_make().stdout, re.M)
    assert sorted(listed) == sorted(phony)


def test_ci_run_is_executable_and_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "exec make test" in script.read_text()


def test_launch_local_prints_help_without_installing(tmp_path):
    env = {**os.environ, "VENV": str(tmp_path / "env")}
    result = subprocess.run(
        ["bash", str(ROOT / "launch" / "local.sh"), "--help"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--dry_run" in result.stdout
    assert not (tmp_path / "env").exists()


@needs_make
def test_launch_local_passes_its_arguments_on_unchanged(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pip").touch()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\nprintf '%s|' \"$@\"\n")
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    os.utime(tmp_path / ".installed", (2**32, 2**32))
    arguments = ["distill", "--config=configs/digits.py", "--workdir=a folder", "--dry_run"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run(
        ["bash", str(ROOT / "launch" / "local.sh"), *arguments],
        env={**env, "VENV": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split("|")[:-1] == ["-m", "dmd2_jax.commands.main", *arguments]


@pytest.mark.parametrize("script", [".ci/run", "launch/local.sh"])
def test_scripts_parse_and_stop_at_the_first_error(script):
    assert "set -euo pipefail" in (ROOT / script).read_text()
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_pre_commit_hooks_are_local_tools_of_the_environment(metadata):
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    dev = {re.split(r"[^\w-]", r)[0] for r in metadata["extras_require"]["dev"]}
    tools = {hook["entry"].split()[0] for hook in config["repos"][0]["hooks"]}
    assert tools == {".venv/bin/" + name for name in ("ruff", "mypy", "nbstripout")}
    assert {Path(tool).name for tool in tools} <= dev


def test_license_is_apache_2_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License")
    for heading in range(1, 10):
        assert f"\n   {heading}. " in text
    assert "END OF TERMS AND CONDITIONS" in text
