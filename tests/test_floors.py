"""The floors of docs/architecture.md, enforced by reading every import."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dmd2_jax"

FLOORS = {
    "main": 7,
    "commands": 7,
    "text2image_flags": 7,
    "demo": 6,
    "ablate": 6,
    "ablate_flags": 7,
    "evaluate_flags": 7,
    "report_flags": 7,
    "report": 6,
    "evaluate": 6,
    "evaluate_clip": 6,
    "evaluate_features": 6,
    "evaluate_images": 6,
    "evaluate_options": 6,
    "evaluate_prompts": 6,
    "evaluate_table": 6,
    "evaluate_targets": 6,
    "student_state": 5,
    "teacher_step": 5,
    "train_teacher": 5,
    "train_student": 5,
    "sample": 5,
    "sample_prompts": 5,
    "text2image": 5,
    "text_run": 5,
    "export": 5,
    "export_folder": 5,
    "convert": 5,
    "drawing": 5,
    "data_command": 5,
    "cache_inputs": 5,
    "latent_cache": 5,
    "measure": 5,
    "ablation_table": 5,
    "one_base": 5,
    "pairs": 5,
    "training": 5,
    "recipe": 5,
    "cycle_data": 5,
    "parallel": 5,
    "plan": 5,
    "plan_buffers": 5,
    "plan_cycle": 5,
    "plan_tables": 5,
    "families": 4,
    "distill": 3,
    "evaluation": 3,
    "networks": 2,
    "losses": 2,
    "diffusion": 2,
    "data": 2,
    "runtime": 1,
    "config": 1,
    "ablation": 1,
    "denoiser": 1,
    "typing": 1,
    "version": 1,
}
"""Folder or file of dmd2_jax -> its floor."""

FILES = sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    """The folder or top-level module of the package that a file belongs to."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(file: Path) -> set[str]:
    """Every room of the package that a file imports from, at its top or inside a function."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively"
            # `from dmd2_jax import data` imports the room dmd2_jax.data
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == "dmd2_jax" and len(parts) > 1:
                rooms.add(parts[1])
    return rooms


def violations(name: str, rooms: set[str], floors: dict[str, int]) -> list[str]:
    """The imports of room `name` that go up, or across to another folder of its floor."""
    found = []
    for other in sorted(rooms - {name}):
        # Single files of one floor stand in one folder, the package itself.
        across = (PACKAGE / name).is_dir() or (PACKAGE / other).is_dir()
        if floors[other] > floors[name] or (floors[other] == floors[name] and across):
            found.append(f"{name} (floor {floors[name]}) -> {other} (floor {floors[other]})")
    return found


def test_floors_list_every_file() -> None:
    assert {room(file) for file in FILES} - {"__init__"} <= set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_file_imports_only_from_lower_floors(file: Path) -> None:
    name = room(file)
    if name == "__init__":  # the library's front door, no room of its own
        return
    # floor 1: typing and denoiser are what runtime is written in
    floors = FLOORS | {"typing": 0, "denoiser": 0, "version": 0}
    assert violations(name, imported_rooms(file), floors) == []


def test_files_of_the_package_import_each_other_without_circles() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        if room(file) != "__init__":
            graph.setdefault(room(file), set()).update(imported_rooms(file) & set(FLOORS))

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join((*path, name))}"
        for other in graph.get(name, set()) - {name}:
            visit(other, (*path, name))

    for name in graph:
        visit(name, ())


def test_violations_finds_what_is_forbidden() -> None:
    assert violations("losses", {"distill"}, FLOORS) == ["losses (floor 2) -> distill (floor 3)"]
    assert violations("losses", {"networks"}, FLOORS) != []
    assert violations("distill", {"losses", "distill"}, FLOORS) == []


LIGHT = "dmd2_jax, dmd2_jax.distill, dmd2_jax.diffusion, dmd2_jax.losses, dmd2_jax.networks"
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "diffusers",
    "transformers",
    "orbax",
    "sklearn",
    "matplotlib",
    "PIL",
    "tqdm",
    "safetensors",
    "huggingface_hub",
    "ml_collections",
    "array_record",
    "grain",
)


def imported_modules(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        check=True,
    )
    return set(done.stdout.split())


def test_library_import_is_light() -> None:
    assert sorted(imported_modules(f"import {LIGHT}") & set(HEAVY)) == []


def test_config_import_knows_no_jax() -> None:
    code = (
        "import importlib.util as u\n"
        f"s = u.spec_from_file_location('c', {str(PACKAGE / 'config.py')!r})\n"
        "m = u.module_from_spec(s); sys.modules['c'] = m; s.loader.exec_module(m)"
    )
    assert not {"jax", "flax"} & imported_modules(code)
