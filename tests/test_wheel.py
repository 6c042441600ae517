"""A built wheel, unpacked, in a folder without the repository: it has its recipes."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "dmd2_jax", "configs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip would install into."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves files beside setup.py
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    words = ["wheel", ".", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", "-q"]
    subprocess.run([sys.executable, "-m", "pip", *words], cwd=source, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def dmd2(site: Path, here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "dmd2_jax.commands.main", *words]
    return subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=False)


def test_wheel_holds_every_recipe_under_our_own_name_alone(site: Path) -> None:
    ours = {file.relative_to(ROOT / "configs") for file in (ROOT / "configs").rglob("*.py")}
    packed = site / "dmd2_jax" / "configs"
    assert {file.relative_to(packed) for file in packed.rglob("*.py")} == ours
    names = {entry.name for entry in site.iterdir() if not entry.name.endswith(".dist-info")}
    assert names == {"dmd2_jax"}


def test_wheel_says_that_it_has_types_and_what_it_is(site: Path) -> None:
    assert (site / "dmd2_jax" / "py.typed").is_file()
    (told,) = site.glob("*.dist-info/METADATA")
    lines = told.read_text().partition("\n\n")[0].splitlines()
    version = (ROOT / "dmd2_jax" / "version.py").read_text().split('"')[-2]
    wanted = (
        f"Version: {version}",
        "License: Apache-2.0",
        "Classifier: Typing :: Typed",
    )
    assert set(wanted) <= set(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet64_resume_gan", "configs/imagenet64_resume_gan.py"])
def test_wheel_finds_its_recipe_and_not_a_users_package_of_that_name(
    site: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "configs").mkdir()
    for module in ("__init__", "common", "imagenet64"):
        (tmp_path / "configs" / f"{module}.py").write_text("raise RuntimeError('not ours')\n")
    words = ("distill", f"--config={name}", "--workdir=run", "--dry_run")
    ended = dmd2(site, tmp_path, *words)
    assert ended.returncode == 2
    # All that is missing here is the data: the recipe and its parents were found.
    assert "datasets/imagenet-64x64.zip" in ended.stderr, ended.stderr


@pytest.mark.slow
def test_wheel_plans_a_recipe_and_shows_the_demos_help(site: Path, tmp_path: Path) -> None:
    ended = dmd2(site, tmp_path, "plan", "--config=digits", "--until=trace")
    assert ended.returncode == 0, ended.stderr
    assert "generator" in ended.stdout
    ended = dmd2(site, tmp_path, "demo", "--help")
    assert ended.returncode == 0, ended.stderr
    ended = dmd2(site, tmp_path, "demo", "--workdir=demo", "--config.teacher.steps=0")
    assert "teacher.steps=0, expected at least 1" in ended.stderr
    assert list(tmp_path.iterdir()) == []
