"""The remedy for a missing extra is a line that works: pip finds dmd2_jax on no index."""

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmd2_jax.config import refused

ROOT = Path(__file__).resolve().parents[2]


def test_pip_install_of_a_clone_names_the_clone(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert refused.pip_install("plan") == 'pip install -e ".[plan]"'
    monkeypatch.chdir(tmp_path)
    assert refused.pip_install("plan") == f'pip install -e "{ROOT}[plan]"'


@pytest.mark.parametrize(
    ("noted", "origin"),
    [
        (
            {"url": "https://host/me/dmd2", "vcs_info": {"vcs": "git", "commit_id": "ab12"}},
            " @ git+https://host/me/dmd2@ab12",
        ),
        ({"url": "file:///wheels/dmd2_jax-1-py3-none-any.whl"}, " @ file:///wheels/dmd2_jax-1"),
        (None, '"'),
    ],
)
def test_pip_install_of_an_installed_package_names_where_it_came_from(
    noted, origin, monkeypatch, tmp_path
):
    monkeypatch.setattr(refused, "__file__", str(tmp_path / "dmd2_jax" / "config" / "refused.py"))
    text = None if noted is None else json.dumps(noted)
    found = SimpleNamespace(read_text={"direct_url.json": text}.get)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    assert refused.pip_install("tfds").startswith('pip install "dmd2_jax[tfds]' + origin)


def test_pip_install_of_a_folder_on_the_path_alone_still_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(refused, "__file__", str(tmp_path / "dmd2_jax" / "config" / "refused.py"))

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert refused.pip_install("tfds") == 'pip install "dmd2_jax[tfds]"'
