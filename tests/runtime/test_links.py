"""Links out of a folder are not followed, but for those of the Hub's cache into its own blobs."""

from pathlib import Path

import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.folder import read_component_config, read_component_tensors
from dmd2_jax.runtime.links import check_inside
from dmd2_jax.text2image.tokenizer import _read as read_tokenizer
from dmd2_jax.weights.state_dict import write_safetensors


def test_files_and_links_inside_pass(tmp_path: Path) -> None:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "a.json").write_text("{}")
    (tmp_path / "model" / "sub" / "b.json").symlink_to("../a.json")
    (tmp_path / "moved").symlink_to(tmp_path / "model")
    for name in ("a.json", "sub/b.json", "not_there.json"):
        check_inside(tmp_path / "moved" / name, tmp_path / "moved")


def test_the_hubs_links_lead_to_the_blobs_of_their_repository_alone(tmp_path: Path) -> None:
    for name in ("models--a--b", "models--c--d"):
        (tmp_path / name / "blobs").mkdir(parents=True)
        (tmp_path / name / "blobs" / "0123").write_text("{}")
        (tmp_path / name / "snapshots" / "9" / "vae").mkdir(parents=True)
    vae = tmp_path / "models--a--b" / "snapshots" / "9" / "vae"
    (vae / "config.json").symlink_to("../../../blobs/0123")
    check_inside(vae / "config.json", vae)
    assert read_component_config(vae) == {}
    (vae / "other.json").symlink_to(tmp_path / "models--c--d" / "blobs" / "0123")
    with pytest.raises(Refused, match=r"other\.json is a link to .*c--d/blobs/0123, outside of"):
        check_inside(vae / "other.json", vae)


def test_no_reader_of_a_component_follows_a_link_out_of_it(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "vae"
    for place in (outside, folder):
        place.mkdir()
    (outside / "private.json").write_text('{"secret": 1}')
    write_safetensors({}, outside / "private.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).symlink_to(outside / "private.json")
    (folder / "model.safetensors").symlink_to(outside / "private.safetensors")
    for read in (
        lambda: read_component_config(folder),
        lambda: read_component_tensors(folder, "model"),
        lambda: read_tokenizer(str(folder), "CLIP"),
    ):
        with pytest.raises(Refused, match=r"is a link to .*/outside/private"):
            read()
