"""A family is one folder with the same few files, and what families share knows none of them."""

import ast
import inspect

import pytest

from dmd2_jax import families
from dmd2_jax.config.family import family_names
from tests.test_floors import PACKAGE, circle, folder_graph, import_graph

FOLDER = PACKAGE / "families"


def test_folders_of_the_families_form_no_circle() -> None:
    graph = import_graph()
    folder_of = {n: n.split(".")[1] for n in graph if n.count(".") and n.startswith("families.")}
    between = folder_graph(graph, folder_of)
    assert set(between) == {*family_names(), "published"}
    assert circle(between) == []
    assert between["published"] == set()


def test_no_shared_network_serves_one_family_alone() -> None:
    graph = import_graph()
    ours = {f"families.{family}" for family in family_names()}
    for network in (name for name in graph if name.startswith("networks.")):
        users = {".".join(user.split(".")[:2]) for user in graph if network in graph[user]}
        assert not (len(users) == 1 and users <= ours), network


@pytest.mark.parametrize("name", family_names())
def test_family_offers_the_same_few_things(name: str) -> None:
    module = getattr(families, name)
    assert {"build", "defaults", "faults"} <= set(module.__all__)
    assert {"__init__.py", "settings.py", "family.py"} <= {
        f.name for f in (FOLDER / name).iterdir()
    }
    assert list(inspect.signature(module.build).parameters) == ["model_config"]


@pytest.mark.parametrize("name", family_names())
def test_settings_import_no_jax(name: str) -> None:
    shared = FOLDER.parent / "config" / "flow_group.py"
    ours = {f"dmd2_jax.config.{module}" for module in ("flow_group", "rules", "sizes")}
    for file in (FOLDER / name / "settings.py", shared):
        tree = ast.parse(file.read_text())
        modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert modules <= {"collections.abc", "typing", "ml_collections", *ours}
