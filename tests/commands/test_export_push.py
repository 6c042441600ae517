"""`dmd2 export --push`: the Hub's own client against a stand-in of the Hub."""

import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from dmd2_jax.commands.export.push import check_header, check_push, push
from dmd2_jax.config.refused import Refused
from dmd2_jax.weights import hub as weights_hub
from tests.hub import TOKEN, Hub, hub_here
from tests.tiny import contents, refused


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_here(tmp_path / "cache") as it:
        yield it


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """What an export may look like, with small and large files."""
    folder = tmp_path / "run" / "student"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    (folder.parent / "config.json").write_text("the run's own")
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what is said where nothing else of the command's input is there either."""
    return refused(capsys, "export", "--workdir=absent", "--out=absent/student", *words)


def test_push_sends_exactly_the_folder(hub: Hub, export: Path) -> None:
    assert not check_push("ada/student", private=False)
    assert not [it for it in hub.asked if not it.startswith("GET")]
    address = push(export, "ada/student", private=False, message="A student of 4 steps")
    assert address == f"{hub.address}/ada/student"
    assert hub.files == {"ada/student": contents(export)}
    assert hub.messages == ["A student of 4 steps"] and not hub.private["ada/student"]
    assert {it for it in hub.asked if "/lfs/" in it and "PUT" in it} != set()


def test_pushed_file_is_read_by_its_path_on_the_hub(hub: Hub, export: Path) -> None:
    push(export, "ada/read_back", private=False, message="all")
    file = weights_hub.fetch("hf://ada/read_back/unet/model.safetensors")
    assert file.read_bytes() == (export / "unet" / "model.safetensors").read_bytes()


def test_push_of_an_organisation_may_be_private(hub: Hub, export: Path) -> None:
    check_push("engines/student", private=True)
    push(export, "engines/student", private=True, message="all")
    assert hub.private == {"engines/student": True}
    assert check_push("engines/student", private=True)


def test_push_again_replaces_files_and_leaves_others(hub: Hub, export: Path) -> None:
    hub.make("ada/student")
    hub.files["ada/student"] = {"README.md": b"before", "notes.txt": b"mine"}
    assert check_push("ada/student", private=False)
    push(export, "ada/student", private=False, message="all")
    assert hub.files["ada/student"] == contents(export) | {"notes.txt": b"mine"}


def test_push_that_fails_says_that_the_folder_is_whole(hub: Hub, export: Path) -> None:
    hub.failing = "/commit/"
    with pytest.raises(OSError, match="is written and whole") as caught:
        push(export, "ada/student", private=False, message="all")
    assert f"`hf upload ada/student {export} .` sends it again" in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["student", "a/b/c", "ada/", "ada/a--b", "ada/.x", "https://huggingface.co/ada/x"]
)
def test_malformed_name_is_refused_first(
    name: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(capsys, f"--push={name}")
    assert f"--push={name} is no name of a repository" in said
    assert "expected owner/name such as ada/sdxl-four-step" in said
    assert hub.asked == []


@pytest.mark.parametrize("more", [(), ("--dry_run",)])
def test_nobody_logged_in_is_refused_before_any_work(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub_here(tmp_path, token="") as hub:
        said = told(capsys, "--push=ada/x", *more)
    assert "nobody is logged in to the Hub; log in with `hf auth login`, or set HF_TOKEN" in said
    assert hub.asked == []


def test_wrong_token_is_refused_and_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub_here(tmp_path, token="hf_of_nobody"):
        said = told(capsys, "--push=ada/x")
    assert "the Hub does not know this token" in said and "hf_of_nobody" not in said


def test_token_that_may_only_read_is_refused(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.account["auth"]["accessToken"]["role"] = "read"
    assert "--push=ada/x with a token that may only read" in told(capsys, "--push=ada/x")


def test_repository_of_somebody_else_is_refused(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(capsys, "--push=grace/x")
    assert "--push=grace/x is of grace, expected one of ada, engines" in said


def test_private_is_refused_where_the_repository_is_public(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.make("ada/x")
    said = told(capsys, "--push=ada/x", "--private")
    assert "--private with --push=ada/x, which is there and public" in said


def test_private_without_push_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--private without --push" in told(capsys, "--private")


def test_hub_that_does_not_answer_is_said(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
        said = told(capsys, "--push=ada/x")
    assert "--push=ada/x: the Hub does not answer (OfflineModeIsEnabled" in said
    assert "send the folder later by `hf upload`" in said


def test_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "--push=ada/x needs the package huggingface_hub" in told(capsys, "--push=ada/x")


def test_header_is_judged_by_the_hub(hub: Hub) -> None:
    check_header("ada/x", "---\nlicense: mit\n---\n")
    with pytest.raises(Refused, match=r'"license.*must be one of the list.*correct `license=`'):
        check_header("ada/x", "---\nlicense: free-beer\n---\n")
