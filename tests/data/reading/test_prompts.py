"""Files of prompts: every format, what is left out, and what is refused."""

import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax import data
from dmd2_jax.config.refused import pip_install
from dmd2_jax.data.reading.prompts import read_prompts

TEXTS = ["a red fox", "écran 数字", "a red fox"]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write(tmp_path / "many.txt", "".join(f"prompt {i}\n" for i in range(20)))


def test_read_prompts_reads_txt(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "\ufeffa red fox\r\n\n  écran 数字 \na red fox")
    assert read_prompts(path).texts == tuple(TEXTS)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_read_prompts_reads_what_other_systems_write(
    encoding: str, end: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "p.txt", end.join(TEXTS).encode(encoding))
    assert read_prompts(path).texts == tuple(TEXTS)


def test_read_prompts_reads_files_that_were_put_together(tmp_path: Path) -> None:
    parts = [f"{text}\n".encode("utf-8-sig") for text in TEXTS]
    assert read_prompts(write(tmp_path / "p.txt", b"".join(parts))).texts == tuple(TEXTS)


@pytest.mark.parametrize("key", ["prompt", "text", "caption"])
def test_read_prompts_reads_jsonl(key: str, tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"id": 1, key: text}) for text in TEXTS)
    assert read_prompts(write(tmp_path / "p.jsonl", lines + "\n\n")).texts == tuple(TEXTS)


@pytest.mark.parametrize("key", ["prompt", "text", "caption"])
def test_read_prompts_reads_parquet(key: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], key: TEXTS}), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet").texts == tuple(TEXTS)


def test_read_prompts_counts_the_empty_ones_that_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "p.jsonl", '{"text": "a"}\n{"text": " "}\n{"text": ""}\n')
    with caplog.at_level(logging.WARNING):
        assert read_prompts(path).texts == ("a",)
    (record,) = caplog.records
    assert "2 of 3 prompts are empty" in record.getMessage()


def test_read_prompts_leaves_out_nulls_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet").texts == ("a",)


def test_a_parquet_file_that_unfolds_without_end_is_refused_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["x" * 1000] * 20_000}), tmp_path / "p.parquet")
    assert (tmp_path / "p.parquet").stat().st_size < 20_000
    monkeypatch.setattr("dmd2_jax.data.reading.parquet._MOST_BYTES", 10_000_000)
    with pytest.raises(ValueError, match=r"p\.parquet unfolds to more than .* of texts"):
        read_prompts(tmp_path / "p.parquet")
    monkeypatch.setattr("dmd2_jax.data.reading.parquet._MOST_BYTES", 30_000_000)
    assert len(read_prompts(tmp_path / "p.parquet").texts) == 20_000


def test_prompts_come_in_the_order_of_every_source(many: Path) -> None:
    prompts = read_prompts(many)
    batch = data.batches_from(prompts, 17, 2, batch_size=4, seed=5)
    numbers = data.example_indices(20, start=17, count=8, seed=5)
    assert batch["prompt"].shape == (2, 4)
    assert batch["prompt"].reshape(-1).tolist() == [f"prompt {i}" for i in numbers]


def test_prompts_of_two_processes_are_the_global_batch(many: Path) -> None:
    prompts = read_prompts(many)
    whole = data.batches_from(prompts, 3, 1, batch_size=6, seed=1)["prompt"]
    parts = [
        data.batches_from(
            prompts, 3, 1, batch_size=6, seed=1, rows=data.process_rows(6, process, 2)
        )["prompt"]
        for process in range(2)
    ]
    assert np.concatenate(parts, axis=1).tolist() == whole.tolist()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.txt", b"fine\nna\xefve\n", r"p\.txt line 2 is not UTF-8 \(byte 0xef at 2\)"),
        ("p.txt", "fine\nno".encode("utf-16-le"), r"p\.txt line 1 has a NUL character.*utf-16le"),
        ("p.txt", b"\xff\xfea", r"p\.txt is not UTF-16"),
        ("p.jsonl", b'{"text": "a\\u0000"}', r"line 1 has the character U\+0000"),
        ("p.jsonl", b'{"text": "a"}\n{"text": \n', r"p\.jsonl line 2 is no JSON .*correct it"),
        ("p.jsonl", b'\n["a"]\n', r"p\.jsonl line 2 is '\[\"a\"\]', expected an object"),
        ("p.jsonl", b'{"txt": "a"}', r"line 1 has \['txt'\], expected one of \['prompt', 'text'"),
        ("p.jsonl", b'{"text": 3}', r"line 1 has text = 3, expected a text"),
        ("p.txt", b" \n\n", "has no prompts, expected at least one"),
        ("p.csv", b"a", r"ends in '\.csv', expected one of \.txt, \.jsonl, \.parquet"),
        ("p.parquet", b"PAR1", r"p\.parquet cannot be read .*expected a parquet file"),
    ],
)
def test_read_prompts_refuses(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path / name, content))


@pytest.mark.parametrize(
    "column, message",
    [
        ({"text": [1, 2]}, "a column 'text' of int64, expected texts"),
        ({"words": ["a"]}, r"has \['words'\], expected one of"),
    ],
)
def test_read_prompts_refuses_parquet_without_texts(
    column: dict[str, list], message: str, tmp_path: Path
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(column), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "p.parquet")


def test_read_prompts_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mind the working directory"):
        read_prompts(tmp_path / "absent.txt")


def test_read_prompts_names_the_extra_without_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=re.escape(pip_install("text2image"))):
        read_prompts(write(tmp_path / "p.parquet", b""))
