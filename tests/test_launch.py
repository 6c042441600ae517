"""The launch scripts: what they print, what they refuse, and that a linter has read them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
COMMAND = ("distill", "--config=configs/digits.py", "--config.name=a b")

PLACES: dict[str, tuple[str, ...]] = {"local": ()}
"""Script -> the words before the command."""


def launch(name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "launch" / f"{name}.sh", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def printed(name: str, **environment: str) -> str:
    done = launch(name, "--dry_run", *PLACES[name], *COMMAND, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_tested() -> None:
    assert {script.stem for script in SCRIPTS} == set(PLACES)


@pytest.mark.parametrize("name", PLACES)
def test_script_prints_what_it_would_do_and_keeps_words_whole(name: str) -> None:
    text = printed(name)
    assert "dmd2_jax.main" in text
    words = (r"--config.name=a\ b", "--config.name=a b", r"--config.name=a\\\ b")
    assert any(word in text for word in words)


@pytest.mark.parametrize("name", PLACES)
def test_script_explains_itself(name: str) -> None:
    done = launch(name, "--help")
    assert done.returncode == 0
    assert f"usage: launch/{name}.sh" in done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_passes_shellcheck(script: Path) -> None:
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
