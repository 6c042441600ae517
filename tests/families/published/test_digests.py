"""digests.json beside a pipeline that was exported: any file that is not as written is named."""

import json
import os
import shutil
from pathlib import Path

import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.digests import (
    DIGESTS,
    check_digest,
    check_plain_digests,
    write_digests,
)
from dmd2_jax.families.published.folder import read_component, read_component_config
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.runtime.seal import Unreachable, seal
from dmd2_jax.text2image.tokenizer import open_tokenizer
from tests.pipelines import tiny_pipeline

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two plain files and one of weights, with their digests."""
    for name in ("model_index.json", "vae/config.json", WEIGHTS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"of {name}")
    write_digests(tmp_path)
    return tmp_path


def test_files_as_they_were_written_are_accepted(folder: Path) -> None:
    check_plain_digests(folder)
    check_digest(folder, WEIGHTS)
    (folder / "vae" / "more.json").write_text("of the user's own")
    check_plain_digests(folder)


def test_a_file_that_was_put_there_since_is_refused_where_it_would_be_read(folder: Path) -> None:
    (folder / "vae" / "more.json").write_text("of a stranger")
    with pytest.raises(Refused, match="vae/more.json, which would be read and is not in its"):
        check_digest(folder, "vae/more.json")
    (folder / DIGESTS).write_text(json.dumps(seal({"files": {}})))
    with pytest.raises(Refused, match=f"has {WEIGHTS}, which would be read"):
        check_digest(folder, WEIGHTS)
    (folder / DIGESTS).unlink()
    check_digest(folder, "vae/more.json")


def test_a_variant_or_a_token_that_was_added_to_a_pipeline_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline("sd15"), folder)
    write_digests(folder)
    read_component(folder / "vae")
    shutil.copy(folder / WEIGHTS, folder / WEIGHTS.replace(".safe", ".fp16.safe"))
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"not read")
    read_component(folder / "vae")
    with pytest.raises(Refused, match=r"fp16\.safetensors, which would be read"):
        read_component(folder / "vae", variant="fp16")
    (folder / "tokenizer" / "README.md").write_text("not read")
    (folder / "tokenizer" / "added_tokens.json").write_text("{}")
    encoder = read_component_config(folder / "text_encoder")
    text = PublishedModel.from_config(encoder).module
    with pytest.raises(Refused, match=r"tokenizer/added_tokens\.json, which would be read"):
        open_tokenizer(folder / "tokenizer", text)  # type: ignore[arg-type]


def test_a_folder_of_others_is_read_as_it_is(folder: Path) -> None:
    (folder / DIGESTS).unlink()
    (folder / "vae" / "config.json").write_text("changed")
    check_plain_digests(folder)
    check_digest(folder, WEIGHTS)


def test_a_plain_file_that_was_changed_or_is_gone_is_named(folder: Path) -> None:
    file = folder / "vae" / "config.json"
    file.write_text(f"{file.read_text()} ")
    with pytest.raises(Refused, match="vae/config.json is not as it was written.*remove digests"):
        check_plain_digests(folder)
    file.unlink()
    with pytest.raises(Refused, match="vae/config.json cannot be read"):
        check_plain_digests(folder)


def test_weights_are_compared_when_they_are_read_and_not_before(folder: Path) -> None:
    (folder / WEIGHTS).write_text("another")
    check_plain_digests(folder)
    with pytest.raises(Refused, match=f"{WEIGHTS} is not as it was written"):
        check_digest(folder, WEIGHTS)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        '{"files": {}, "seal": "0"}',
        json.dumps(seal({"files": {"../../secret.json": "0"}})),
        json.dumps(seal({"files": {"/etc/hostname": "0"}})),
        json.dumps(seal({"files": ["a"]})),
        json.dumps(seal({"files": {"a\0b": "0"}})),
    ],
)
def test_digests_that_are_none_are_refused(content: str, folder: Path) -> None:
    (folder / DIGESTS).write_text(content)
    with pytest.raises(Refused, match=r"does not match its digests\.json: it (is damaged|cannot)"):
        check_plain_digests(folder)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_stands_in_the_place_of_digests_is_refused(kind: str, folder: Path) -> None:
    (folder / DIGESTS).unlink()
    if kind == "link":
        (folder / DIGESTS).symlink_to(folder / "nothing")
    elif kind == "folder":
        (folder / DIGESTS).mkdir()
    else:
        os.mkfifo(folder / DIGESTS)
    with pytest.raises(Refused, match=r"does not match its digests\.json: it cannot be read"):
        check_plain_digests(folder)


def test_a_disk_that_hands_nothing_over_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("dmd2_jax.families.published.digests.file_digest", stale)
    with pytest.raises(Unreachable, match="cannot be read at the moment"):
        check_plain_digests(folder)
