"""The README's library example is run as it stands there, on a teacher of the test's own."""

import re
import sys
import types
from pathlib import Path

import jax
import pytest

from dmd2_jax.adapters import from_function
from dmd2_jax.diffusion.schedules import edm
from tests.distill.test_toy_distributions import (
    edm_mlp,
    init_mlp,
    shares_and_precision,
    train_teacher,
)

README = (Path(__file__).parents[1] / "README.md").read_text()
DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_library_example_covers_all_modes(monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    denoiser = from_function(edm_mlp, schedule=edm(sigma_min=0.02, sigma_max=5.0), prediction="x0")
    params = train_teacher(denoiser, init_mlp(jax.random.key(2)), weight="edm", steps=2000)
    module = types.ModuleType("my_model")
    module.predict, module.teacher_params = edm_mlp, params
    monkeypatch.setitem(sys.modules, "my_model", module)
    scope: dict = {}
    exec(compile(example, "README.md", "exec"), scope)
    shares, precision = shares_and_precision(scope["samples"])
    assert shares.min() >= 0.08, (shares, precision)  # a fair share is 0.167
    assert precision >= 0.75, (shares, precision)  # a ring without modes has 0.60


def test_library_example_is_short_and_imports_from_one_place():
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.splitlines()) <= 20
    assert set(re.findall(r"from (\S+) import", example)) == {"dmd2_jax", "my_model"}


@pytest.mark.parametrize("heading", ["## Two commands", "## Results"])
def test_figures_are_those_of_the_pages_behind(heading):
    (part,) = re.findall(rf"{heading}\n(.*?)\n## ", README, flags=re.DOTALL)
    pages = [(DOCS / name).read_text() for name in ("results.md", "transformers.md")]
    found = set(re.findall(r"\d+\.\d+", " ".join(pages)))
    minutes = {f"{float(m):.0f}" for m in re.findall(r"([\d.]+) minutes", pages[0])}
    assert set(re.findall(r"\d+\.\d+", part)) <= found
    assert set(re.findall(r"(\d+) minutes", part.replace("6.7 minutes", ""))) <= minutes


def test_readme_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 120


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
