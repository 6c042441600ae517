"""hf:// paths: from a cache laid out as huggingface_hub does, without a network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dmd2_jax.config.refused import pip_install
from dmd2_jax.weights import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = "hf://one/repository/folder/model.safetensors"
MISSING = "hf://one/repository/folder/other.bin@v2"

PROGRAM = """
import json, sys
from dmd2_jax.weights import hub
def fetched(path):
    try:
        return hub.fetch(path).read_text()
    except hub.HubError as error:
        return str(error)
print(json.dumps({path: fetched(path) for path in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def fetched(tmp_path_factory) -> dict[str, str]:
    """Return what a process with HF_HOME and HF_HUB_OFFLINE set makes of some paths."""
    pytest.importorskip("huggingface_hub")
    home = tmp_path_factory.mktemp("home")
    repository = home / "hub" / "models--one--repository"
    for revision, content in ((COMMIT, "first"), (COMMIT[::-1], "second")):
        folder = repository / "snapshots" / revision / "folder"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(content)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v2").write_text(COMMIT[::-1])
    unset = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    paths = [FILE, f"{FILE}@v2", f"{FILE}@{COMMIT[::-1]}", MISSING]
    words = [sys.executable, "-c", PROGRAM, *paths]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment, cwd=root, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "revision, content",
    [("", "first"), ("@v2", "second"), (f"@{COMMIT[::-1]}", "second")],
    ids=["main", "branch", "commit"],
)
def test_fetch_takes_the_revision_from_the_cache(fetched, revision, content):
    assert fetched[FILE + revision] == content


def test_fetch_without_network_names_the_file_to_download(fetched):
    message = fetched[MISSING]
    assert message.startswith(f"{MISSING} is not in the cache and cannot be downloaded")
    assert "download folder/other.bin of one/repository, revision v2, by hand" in message


def test_fetch_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(hub.HubError, match=re.escape(pip_install("hub"))) as caught:
        hub.fetch("hf://one/repository/model.bin")
    assert "download model.bin of one/repository by hand" in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "hf://",
        "hf://one/repository",
        "hf://one//model.bin",
        "hf://../../etc/passwd",
        "hf://one/repository/../../model.bin",
        "hf://one/repository/model.bin@",
        "hf://one/repository/model.bin@../main",
        "hf://one/repository/mo del.bin",
    ],
)
def test_fetch_refuses_a_malformed_path(path):
    with pytest.raises(hub.HubError, match="is no path of the Hub, expected one like hf://owner/"):
        hub.fetch(path)


def test_is_hub_path_leaves_other_paths_alone():
    assert hub.is_hub_path("hf://a/b/c") and not hub.is_hub_path("runs/hf/teacher")
