"""Weights that were written here are read as they were written, or refused by name."""

import hashlib
import json
import random
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dmd2_jax.config.refused import Refused
from dmd2_jax.weights.state_dict import read_metadata, read_safetensors, write_safetensors

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.ones(5, ml_dtypes.bfloat16),
    "number": np.float32(3.0),
    "nothing": np.zeros((0, 2), np.float16),
}


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    file, dice = tmp_path / "x.safetensors", random.Random(18)
    write_safetensors(TENSORS, file, {"dmd2_data": "{}", "note": "x"})
    whole = file.read_bytes()
    for _ in range(200):
        content = bytearray(whole)
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        file.write_bytes(content)
        with pytest.raises(Refused, match=r"x\.safetensors"):
            read_safetensors(file)


def test_the_bytes_of_a_file_are_those_of_every_release(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(TENSORS, file, {"dmd2_data": "{}", "note": "x"})
    # Recorded when the digests were made before the first byte was written.
    recorded = "2d3dec02a72eb1f1d809053ba61e49b38aa717d2a6ac80585350d9ef94cf0387"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == recorded


def test_the_altered_tensor_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(TENSORS, file)
    content = bytearray(file.read_bytes())
    content[content.rindex(np.float32(11).tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(Refused, match=r"not as written: a\.weight\)"):
        read_safetensors(file)


def test_other_programs_read_the_same_tensors(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(TENSORS, file, {"note": "x"})
    ours, theirs = read_safetensors(file), load_file(file)
    assert ours.keys() == theirs.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(theirs[name], tensor)
    assert read_metadata(file)["note"] == "x"
    assert read_metadata(file)["format"] == "pt"


def test_texts_of_the_header_are_in_order(tmp_path: Path) -> None:
    """safetensors writes them in another order in each process."""
    file = tmp_path / "x.safetensors"
    write_safetensors(TENSORS, file, dict.fromkeys("zkafm", ""))
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    names = list(json.loads(content[8 : 8 + length])["__metadata__"])
    assert names == sorted(names) and len(names) == 8


def test_files_without_digests_are_read(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "x.safetensors", {"note": "x"})
    assert read_safetensors(tmp_path / "x.safetensors")["a"].tolist() == [1, 1, 1]


def test_notes_that_another_program_kept_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    write_safetensors(TENSORS, file)
    notes = read_metadata(file)
    save_file({"a.weight": np.zeros(3, np.float32)}, file, notes)
    with pytest.raises(Refused, match="let it leave out dmd2_digests and dmd2_seal"):
        read_safetensors(file)
    write_safetensors({"a": np.ones(2, np.float32)}, file, notes)  # they are never taken over
    assert read_safetensors(file)["a"].tolist() == [1, 1]
