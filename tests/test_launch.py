"""The launch scripts: what they print, what they refuse, and that a linter has read them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
COMMAND = ("distill", "--config=configs/digits.py", "--config.name=a b")

PLACES = {
    "local": (),
    "local_processes": ("2",),
    "tpu_pod": ("slice", "us-east5-a"),
    "queued_resource": ("slice", "us-east5-a", "v5p-128"),
    "slurm": ("2", "8"),
    "gke": ("slice", "registry/image", "tpu-v5-lite-podslice", "4x8", "8", "4"),
}


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


@pytest.mark.parametrize("name", [name for name in PLACES if len(PLACES[name]) > 1])
def test_script_refuses_too_few_words(name: str) -> None:
    done = launch(name, "only")
    assert done.returncode == 2
    assert "got 1 arguments, expected" in done.stderr


def test_local_processes_gives_each_process_its_number() -> None:
    lines = printed("local_processes", JAX_PLATFORMS="cpu", DEVICES="4", XLA_FLAGS="").splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines):
        assert f"DMD2_PROCESS_ID={number} " in line
        assert "DMD2_NUM_PROCESSES=2" in line
        assert "xla_force_host_platform_device_count=4" in line


def test_local_processes_refuses_what_is_no_number() -> None:
    done = launch("local_processes", "two", "demo")
    assert done.returncode == 2
    assert "got NUM=two" in done.stderr


def test_gke_manifest_asks_for_the_slice() -> None:
    text = printed("gke")
    for line in ("parallelism: 8", "google.com/tpu: 4", "gke-tpu-topology: 4x8"):
        assert line in text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_passes_shellcheck(script: Path) -> None:
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
