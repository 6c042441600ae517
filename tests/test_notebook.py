"""The notebooks: their cells in order, in a real client with the inline backend, at a tiny size.

Each has one cell of parameters, whose values a test replaces; nothing else of a cell is changed.
"""

import ast
import functools
import json
import os
import re
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import setuptools
from PIL import Image

from dmd2_jax import data
from dmd2_jax.config.load import load_config
from examples.captioned_digits.make import NAMES as DIGITS
from tests import tiny
from tests.training.test_text_training import pipeline

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("digits", "small_imagenet", "text_to_image", "own_loop")
each_notebook = pytest.mark.parametrize("name", NAMES)
nbformat = pytest.importorskip("nbformat", reason="needs the extra dev")


def settings(recipe: str, **more: str) -> dict[str, str]:
    """Return what makes a recipe the tests' tiny one, whose compiled programs are there already."""
    known, small = load_config(recipe).to_dict(), tiny.get_config().to_dict()
    if known["model"]["family"] != small["model"]["family"]:
        known["model"] = {}  # none of its values is kept: the other network has keys of its own
    changed = {
        f"{group}.{key}": str(value)
        for group in ("model", "teacher", "distill", "optim", "mesh", "log", "evaluate")
        for key, value in small[group].items()
        if value != known[group].get(key, ...)
    }
    grids = {"log.grid_every": "2", "log.teacher_grid_every": "6"}
    return changed | grids | {key.replace("__", "."): value for key, value in more.items()}


def opened(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def tagged(notebook: Any, tag: str) -> Any:
    """Return the one cell with a tag."""
    (cell,) = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", ()))
    return cell


def with_parameters(notebook: Any, values: Mapping[str, Any]) -> Any:
    """Give the names that the cell of parameters assigns other values, and no others."""
    cell = tagged(notebook, "parameters")
    tree = ast.parse(cell.source)
    names = {target.id for node in tree.body for target in getattr(node, "targets", ())}
    assert values.keys() <= names, values.keys() - names
    cell.source += "\n" + "\n".join(f"{name} = {value!r}" for name, value in values.items())
    return notebook


def executed(name: str, folder: Path, values: Mapping[str, Any]) -> Any:
    """Run a notebook as Jupyter does; return it with its outputs."""
    client = pytest.importorskip("nbclient", reason="needs the extra dev")
    pytest.importorskip("ipykernel", reason="needs the extra dev")
    notebook = with_parameters(opened(name), {"RUNS": str(folder / "runs"), **values})
    changed = {
        **{"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        **{"IPYTHONDIR": str(folder / "ipython"), "HF_HUB_OFFLINE": "1"},
    }
    env = {key: it for key, it in os.environ.items() if key != "MPLBACKEND"} | changed
    resources = {"metadata": {"path": str(folder)}}
    made = client.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources)
    return made.execute(env=env)


def outputs(notebook: Any) -> list[Any]:
    return [it for cell in notebook.cells if cell.cell_type == "code" for it in cell.outputs]


def pictures(notebook: Any) -> int:
    """Count what a reader sees."""
    kinds = {"image/png", "image/gif", "image/jpeg"}
    return sum(bool(kinds & it.get("data", {}).keys()) for it in outputs(notebook))


def said(notebook: Any) -> str:
    return "".join(it.get("text", "") for it in outputs(notebook))


@each_notebook
def test_notebook_is_stripped_and_opens_on_colab(name: str) -> None:
    notebook = opened(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    badge = (
        r"\(https://colab\.research\.google\.com/github/(\S+)/blob/main/notebooks/(\w+)\.ipynb\)"
    )
    ((repository, file),) = re.findall(badge, notebook.cells[0].source)
    assert file == name
    assert (
        f'REPOSITORY = "https://github.com/{repository}"' in tagged(notebook, "parameters").source
    )


@each_notebook
def test_notebook_says_why_before_each_cell(name: str) -> None:
    """At most two cells of code follow each other."""
    kinds = "".join(cell.cell_type[0] for cell in opened(name).cells)
    assert "ccc" not in kinds and kinds[0] == "m"


@pytest.mark.slow
def test_digits_notebook_shows_its_result(tmp_path: Path) -> None:
    done = executed("digits", tmp_path, {"SETTINGS": settings("digits")})
    # the data, the course of the run, teacher, student, the losses
    assert pictures(done) == 5
    assert "times cheaper" in said(done)
    for run, weights in [("teacher", "teacher.safetensors"), ("student", "student.safetensors")]:
        assert (tmp_path / "runs" / run / weights).stat().st_size > 0


@pytest.mark.slow
def test_small_imagenet_notebook_trains_on_a_folder_of_images(tmp_path: Path) -> None:
    digits = data.load(tiny.get_config().data, "train", 8)
    for number, name in enumerate((*DIGITS, "none")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in np.flatnonzero(digits.labels == number % 10)[:12]:
            Image.fromarray(digits.images[i, :, :, 0]).save(tmp_path / "photos" / name / f"{i}.png")
    values = {"DATA": "image_folder", "DATA_PATH": str(tmp_path / "photos"), "ON_DRIVE": False}
    chosen = {"CLASSES": DIGITS, "SETTINGS": settings("imagenet64_small")}
    done = executed("small_imagenet", tmp_path, values | chosen)
    # photographs, the teacher's losses, the course, teacher, student, FIDs
    assert pictures(done) == 6
    assert "student" in said(done) and "±" in said(done)
    record = json.loads((tmp_path / "runs" / "student" / "data.json").read_text())
    assert record["class_names"] == sorted(DIGITS)


@pytest.mark.slow
def test_text_to_image_notebook_makes_a_lora_of_a_folder(tmp_path: Path) -> None:
    small = {"distill.cycles": "2", "distill.batch_size": "2", "distill.critic_turns": "2"}
    small |= {"distill.lora_rank": "2", "model.dtype": "float32", "model.scan_layers": "False"}
    small |= {"model.remat": "none", "mesh.data": "1"}
    values = {"PIPELINE": str(pipeline()), "ON_DRIVE": False, "SETTINGS": small}
    prompts = {"PROMPTS": ["a handwritten seven", "the digit one"]}
    done = executed("text_to_image", tmp_path, values | prompts)
    in_diffusers = "pip install torch peft" not in said(done)
    assert pictures(done) == 2 + in_diffusers  # the teacher's, the student's, diffusers'
    assert list((tmp_path / "runs" / "lora").glob("*.safetensors"))


@pytest.mark.slow
def test_own_loop_notebook_trains_nnx_and_equinox(tmp_path: Path) -> None:
    pytest.importorskip("equinox", reason="needs the extra dev")
    done = executed("own_loop", tmp_path, {"TEACHER_STEPS": 20, "CYCLES": 2, "POINTS": 20})
    # the data, the teacher, three students, the objective
    assert pictures(done) == 6


@functools.cache
def set_up() -> Mapping[str, Callable[..., Any]]:
    """The functions of the set-up cell, which is the same in all notebooks."""
    (source,) = {tagged(opened(name), "setup").source for name in NAMES}
    defined = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    space: dict[str, Any] = {}
    exec(compile(ast.Module(defined, []), "set-up cell", "exec"), space)
    return space


CUDA12 = {"jax-cuda12-plugin": "0.10.2", "jax-cuda12-pjrt": "0.10.2"}
CUDA13 = {"jax-cuda13-plugin": "0.10.2"}
JAX = {"jax": "0.10.2", "jaxlib": "0.10.2"}
OLD = {"jax": "0.7.2", "jaxlib": "0.7.2"}
HELD = ["jax==0.10.2", "jaxlib==0.10.2"]
GIT = "git+https://host/me/dmd2"


@pytest.mark.parametrize(
    ("installed", "device", "expected"),
    [
        ({}, "", [f"dmd2_jax[tfds] @ {GIT}"]),
        (JAX, "", [f"dmd2_jax[tfds] @ {GIT}"]),
        (JAX | CUDA12, "nvidia", [f"dmd2_jax[tfds] @ {GIT}", *HELD]),
        (JAX | CUDA13, "nvidia", [f"dmd2_jax[tfds] @ {GIT}", *HELD]),
        (OLD | CUDA12, "nvidia", [f"dmd2_jax[tfds,gpu] @ {GIT}"]),
        (OLD | CUDA13, "nvidia", [f"dmd2_jax[tfds] @ {GIT}", "jax[cuda13]>=0.10,<0.13"]),
        (JAX, "nvidia", [f"dmd2_jax[tfds,gpu] @ {GIT}"]),
        ({}, "nvidia", [f"dmd2_jax[tfds,gpu] @ {GIT}"]),
        (JAX | {"libtpu": "0.0.52"}, "tpu", [f"dmd2_jax[tfds] @ {GIT}", *HELD]),
        (OLD | {"libtpu": "0.0.20"}, "tpu", [f"dmd2_jax[tfds,tpu] @ {GIT}"]),
    ],
)
def test_set_up_never_renews_a_part_of_a_jax_that_works(
    installed: dict[str, str], device: str, expected: list[str]
) -> None:
    requirements = set_up()["requirements"]
    here = (device == "nvidia", device == "tpu")
    assert requirements("https://host/me/dmd2", ["tfds"], installed, *here) == expected


def test_set_up_holds_jax_where_and_only_where_setup_py_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    specifiers = pytest.importorskip("packaging.specifiers")
    recorded: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", recorded.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    (base,) = (it for it in recorded["install_requires"] if re.match(r"jax\W", it))
    allowed = specifiers.SpecifierSet(base.removeprefix("jax"))
    for version in ("0.9.9", "0.10.0", "0.10.2", "0.12.9", "0.13.0", "1.0.0"):
        installed = {"jax": version, "jaxlib": version, "jax-cuda12-plugin": version}
        needed = set_up()["requirements"]("https://host/me", [], installed, True, False)
        assert (f"jax=={version}" in needed) is (version in allowed), version
    others = set_up()["requirements"]("https://host/me", [], OLD | CUDA13, True, False)
    assert others[1] == "jax[cuda13]" + base.removeprefix("jax")
    extras = {"gpu", "tpu"}
    for name in NAMES:
        tree = ast.parse(tagged(opened(name), "parameters").source)
        assigned = {node.targets[0].id: node.value for node in tree.body}  # type: ignore[attr-defined]
        extras |= set(ast.literal_eval(assigned["EXTRAS"]))
    assert extras <= set(recorded["extras_require"])


@pytest.mark.parametrize(
    ("environment", "nvidia", "tpu", "expected"),
    [
        ({}, True, False, "gpu"),
        ({}, False, True, "tpu"),
        ({}, False, False, ""),
        ({"JAX_PLATFORMS": "cpu"}, True, False, ""),
    ],
)
def test_set_up_asserts_the_device_that_is_here(
    environment: dict[str, str], nvidia: bool, tpu: bool, expected: str
) -> None:
    assert set_up()["device_wanted"](environment, nvidia, tpu) == expected
