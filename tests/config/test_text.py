"""Texts with and without marks, and the JSON files that people open in an editor."""

import json
import os
from pathlib import Path

import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import decode_text, read_json, refuse_special
from dmd2_jax.families.published.folder import read_component_config
from dmd2_jax.run.folder import read_run


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_decode_text_reads_what_editors_write(encoding: str) -> None:
    assert decode_text("écran 数字\n".encode(encoding), "x") == "écran 数字\n"


@pytest.mark.parametrize(
    "data, message",
    [
        (b"a\nna\xefve", r"^x line 2 is not UTF-8 \(byte 0xef at 2\), expected UTF-8; convert"),
        (b"\xef\xbb\xbfa\nna\xefve", r"^x is not UTF-8"),
        ("ab".encode("utf-16-be"), "x line 1 has a NUL character"),
        (b"a\nb\0", "x line 2 has a NUL character"),
    ],
)
def test_decode_text_refuses(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_text(data, "x", lines=True)


def test_read_json_refuses_what_nests_too_deep(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nests too deep"):
        read_json(tmp_path / "x.json")


def test_read_json_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(Refused, match="is a pipe, a socket or a device"):
        read_json(tmp_path / "x.json")


def test_read_json_reads_no_more_than_a_text_file_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmd2_jax.config.text._MOST_BYTES", 4)
    (tmp_path / "x.json").write_text("1234")
    assert read_json(tmp_path / "x.json") == 1234
    (tmp_path / "x.json").write_text("12345")
    with pytest.raises(Refused, match="expected a text file"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_configs_that_an_editor_wrote_again_are_read(encoding: str, tmp_path: Path) -> None:
    record = {"command": "distill", "config": {"name": "x"}, "sample_size": 8}
    (tmp_path / "config.json").write_bytes(json.dumps(record).encode(encoding))
    assert read_run(tmp_path)[0] == "distill"
    assert read_component_config(tmp_path)["sample_size"] == 8


def test_what_is_no_file_is_refused_and_what_is_not_there_is_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="is a pipe, a socket or a device"):
        refuse_special(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "nothing", "gs://bucket/x"):
        refuse_special(path)
