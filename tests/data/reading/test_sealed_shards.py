"""Sealed shards: records, what a folder is recognised by, and manifests that lie."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmd2_jax.data.reading.sealed_shards import (
    MANIFEST,
    Layout,
    claim,
    read_manifest,
    verify,
)
from dmd2_jax.runtime.integrity import sealed
from dmd2_jax.runtime.seal import file_digest
from dmd2_jax.runtime.whole_file import NoRoom

LAYOUT = Layout({"x": ((2, 3), "float32"), "a": ((2,), "float16")})
PLAN = {"of": "tests", "store": ["float32"]}


def example(i: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(6.0).reshape(2, 3) / 3 + i, "a": np.array([i, -0.5])}


def write(folder: Path, shards: int = 2) -> Path:
    claimed = claim(folder, PLAN, shards)
    for number in range(shards):
        claimed.write(number, [LAYOUT.pack(example(number), f"text {number} é")])
    claimed.finish(LAYOUT, [], {"note": 1})
    return folder


def rewrite(folder: Path, **changed: Any) -> None:
    """Change what the manifest says, and seal it again, as somebody else could."""
    content = json.loads((folder / MANIFEST).read_text())
    extra = content["extra"] | {k: v for k, v in changed.items() if k != "arrays"}
    arrays = changed.get("arrays", content["arrays"])
    (folder / MANIFEST).write_text(json.dumps(sealed(arrays, extra)))


def test_pack_lays_arrays_out_by_name_and_then_the_text() -> None:
    record = LAYOUT.pack(example(1), "é")
    expected = np.array([1, -0.5], "<f2").tobytes() + (np.arange(6) / 3 + 1).astype("<f4").tobytes()
    assert record == expected + "é".encode()
    assert LAYOUT.size == len(expected) == 28


def test_unpack_returns_what_was_packed() -> None:
    arrays, texts = LAYOUT.unpack([LAYOUT.pack(example(i), f"t{i}") for i in range(3)])
    assert texts == ["t0", "t1", "t2"]
    np.testing.assert_array_equal(
        arrays["x"], np.stack([example(i)["x"] for i in range(3)]).astype(np.float32)
    )
    np.testing.assert_array_equal(arrays["a"], [[0, -0.5], [1, -0.5], [2, -0.5]])
    assert arrays["a"].dtype == np.float32


def test_unpack_refuses_a_short_record() -> None:
    with pytest.raises(ValueError, match="has 27 bytes, expected 28 and a text"):
        LAYOUT.unpack([LAYOUT.pack(example(0), "")[:-1]])


@pytest.mark.parametrize(
    "a, message",
    [
        (np.array([70000.0, 0]), r"reaches 7e\+04, expected .* finite values of float16"),
        (np.array([np.nan, 0]), "finite values of float16"),
        (np.zeros(3), r"of shape \(3,\) .* expected shape \(2,\)"),
    ],
)
def test_pack_refuses_what_it_cannot_hold(a: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAYOUT.pack(example(0) | {"a": a}, "")


def test_claim_writes_nothing(tmp_path: Path) -> None:
    claim(tmp_path / "x", PLAN, 2)
    assert list(tmp_path.iterdir()) == []


def test_claim_finds_the_shards_that_are_there(tmp_path: Path) -> None:
    entry = claim(tmp_path, PLAN, 2).write(1, [LAYOUT.pack(example(1), "")], ["lost.png"])
    again = claim(tmp_path, PLAN, 2)
    assert again.finished == {1: entry}
    assert (entry.records, entry.left_out, again.complete) == (1, ("lost.png",), False)


def test_notes_that_are_no_notes_are_read_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    note = (tmp_path / claim(tmp_path, PLAN, 2).write(1, [b"x"]).file).with_suffix(".json")
    monkeypatch.setattr("dmd2_jax.config.text._MOST_BYTES", 2**12)
    note.write_text("[" + " " * 2**12)
    assert not claim(tmp_path, PLAN, 2).finished
    assert "is damaged and will be written again" in caplog.text
    note.unlink()
    os.mkfifo(note)  # opened, it would wait for a writer for ever
    assert not claim(tmp_path, PLAN, 2).finished
    (tmp_path / "plan.json").write_text("[" + " " * 2**12)
    with pytest.raises(ValueError, match=r"plan\.json is refused .* has more than"):
        claim(tmp_path, PLAN, 2)


def test_write_that_fails_leaves_no_shard(tmp_path: Path) -> None:
    def records():
        yield LAYOUT.pack(example(0), "")
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        claim(tmp_path, PLAN, 2).write(0, records())
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_full_disk_is_known_by_the_writers_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise RuntimeError("write() failed: No space left on device; at byte 16384")

    monkeypatch.setattr("dmd2_jax.data.reading.sealed_shards.open_writer", full)
    with pytest.raises(
        NoRoom, match=r"00000-of-00002\.array_record cannot be written .* free some"
    ):
        claim(tmp_path, PLAN, 2).write(0, [b"x"])


def test_finish_seals_every_file_and_nothing_else_stays(tmp_path: Path) -> None:
    write(tmp_path)
    manifest = read_manifest(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted([MANIFEST, *(entry.file for entry in manifest.shards)])
    assert [entry.digest for entry in manifest.shards] == [
        file_digest(tmp_path / entry.file) for entry in manifest.shards
    ]
    assert (manifest.layout, manifest.plan, manifest.info) == (LAYOUT, PLAN, {"note": 1})


def test_claim_recognises_what_is_complete(tmp_path: Path) -> None:
    assert claim(write(tmp_path), PLAN, 2).complete


def test_claim_refuses_another_plan(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=r"store \['float32'\], now \['float16'\]; expected"):
        claim(tmp_path, PLAN | {"store": ["float16"]}, 2)


def test_verify_names_a_shard_of_another_digest(tmp_path: Path) -> None:
    first, second = (entry.file for entry in read_manifest(write(tmp_path)).shards)
    (tmp_path / first).write_bytes((tmp_path / second).read_bytes())
    with pytest.raises(ValueError, match=rf"1 of 2 files .*: {first} \(another digest\)"):
        verify(tmp_path, read_manifest(tmp_path))


ENTRY = {"file": "s", "records": 1, "bytes": 1, "digest": "0", "left_out": []}


@pytest.mark.parametrize(
    "changed",
    [
        {"shards": [ENTRY | {"file": "../s"}]},
        {"shards": [ENTRY | {"records": -1}]},
        {"shards": [{"file": "s"}]},
        {"files": {"/etc/passwd": "0"}},
        {"arrays": {"x": {"shape": [2], "dtype": "object"}}},
        {"arrays": {"x": {"shape": [2**40], "dtype": "float32"}}},
        {"arrays": {"x": {"shape": [-1, -8], "dtype": "float32"}}},
        {"arrays": {}},
        {"format": 2},
    ],
)
def test_read_manifest_refuses_lies(changed: dict[str, Any], tmp_path: Path) -> None:
    rewrite(write(tmp_path), **changed)
    with pytest.raises(ValueError, match=r"manifest\.json is refused"):
        read_manifest(tmp_path)
