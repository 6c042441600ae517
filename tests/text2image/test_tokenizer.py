"""Prompts to tokens: equal to transformers' own, and what is refused."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.config.refused import pip_install
from dmd2_jax.networks.clip import ClipText, Transformer
from dmd2_jax.text2image.tokenizer import open_tokenizer, warn_of_cut
from tests.pipelines import CAPTIONS, END, START, tiny_pipeline, vocabulary_and_merges

LONG = "seven " * 100
TEXTS = [*CAPTIONS, "", "Unseen words: écran, 数字!", LONG]


def encoder(vocabulary: int | None = None, end: int = 2, context: int = 77) -> ClipText:
    if vocabulary is None:
        vocabulary = len(vocabulary_and_merges()[0])
    return ClipText(Transformer(8, 1, 1, 8, "gelu", 1e-5), vocabulary, context, end)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a published-layout tokenizer, to change."""
    return Path(shutil.copytree(tiny_pipeline("sd15") / "tokenizer", tmp_path / "tokenizer"))


@pytest.mark.parametrize(
    "kind, part", [("sd15", "tokenizer"), ("sdxl", "tokenizer"), ("sdxl", "tokenizer_2")]
)
def test_tokenizer_equals_transformers(kind: str, part: str) -> None:
    from transformers import CLIPTokenizer

    path = tiny_pipeline(kind) / part
    theirs = CLIPTokenizer.from_pretrained(path)
    expected = theirs(TEXTS, padding="max_length", max_length=77, truncation=True).input_ids
    np.testing.assert_array_equal(open_tokenizer(path, encoder())(TEXTS).ids, expected)


def test_tokenizer_reads_the_captions_words_as_one_token_each() -> None:
    vocabulary, _ = vocabulary_and_merges()
    tokens = open_tokenizer(tiny_pipeline("sd15") / "tokenizer", encoder())(["a handwritten"])
    words = [START, "a</w>", "handwritten</w>", END]
    assert tokens.ids[0, :4].tolist() == [vocabulary[word] for word in words]


def test_tokenizer_counts_what_it_cuts() -> None:
    tokens = open_tokenizer(tiny_pipeline("sd15") / "tokenizer", encoder())(["seven", LONG])
    assert tokens.counts.tolist() == [3, 102]


def test_tokenizer_of_no_prompts_is_empty() -> None:
    assert open_tokenizer(tiny_pipeline("sd15") / "tokenizer", encoder())([]).ids.shape == (0, 77)


def test_warn_of_cut_warns_once_with_the_count(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["seven", LONG, LONG]
    with caplog.at_level(logging.WARNING):
        warn_of_cut(np.array([3, 102, 102]), 77, texts)
    (record,) = caplog.records
    assert "2 of 3 prompts have more than 77 tokens" in record.getMessage()


def test_warn_of_cut_is_silent_where_nothing_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_cut(np.array([3, 77]), 77, CAPTIONS[:2])
    assert not caplog.records


def test_counts_are_those_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmd2_jax.text2image.tokenizer._CHUNK", 3)
    tokenizer = open_tokenizer(tiny_pipeline("sd15") / "tokenizer", encoder())
    assert tokenizer.counts(TEXTS).tolist() == tokenizer(TEXTS).counts.tolist()


def test_open_tokenizer_reads_the_length_from_its_config(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 12}))
    assert open_tokenizer(folder, encoder()).length == 12


def test_open_tokenizer_keeps_to_the_places_of_the_encoder() -> None:
    assert open_tokenizer(tiny_pipeline("sd15") / "tokenizer", encoder(context=9)).length == 9


def test_open_tokenizer_refuses_a_vocabulary_larger_than_the_embedding() -> None:
    known = len(vocabulary_and_merges()[0])
    with pytest.raises(ValueError, match=rf"up to number {known - 1}, expected less than the 100 "):
        open_tokenizer(tiny_pipeline("sd15") / "tokenizer", encoder(vocabulary=100))


def test_open_tokenizer_refuses_another_end_token() -> None:
    with pytest.raises(ValueError, match="ends a prompt by token .*, expected 7 as its text enc"):
        open_tokenizer(tiny_pipeline("sd15") / "tokenizer", encoder(end=7))


def test_open_tokenizer_refuses_missing_files(folder: Path) -> None:
    (folder / "merges.txt").unlink()
    with pytest.raises(ValueError, match="has no tokenizer: got .*expected vocab.json and merges"):
        open_tokenizer(folder, encoder())


def test_open_tokenizer_refuses_a_damaged_vocabulary(folder: Path) -> None:
    (folder / "vocab.json").write_bytes((folder / "vocab.json").read_bytes()[:50])
    with pytest.raises(ValueError, match="cannot be read as a tokenizer"):
        open_tokenizer(folder, encoder())


@pytest.mark.parametrize("length", [[[1]], "x", None, True, 0])
def test_open_tokenizer_refuses_a_length_that_is_none(folder: Path, length: object) -> None:
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(config | {"model_max_length": length}))
    if length is None:  # as without it
        assert open_tokenizer(folder, encoder()).length == encoder().context
        return
    with pytest.raises(ValueError, match="model_max_length=.*, expected a number of tokens"):
        open_tokenizer(folder, encoder())


def test_open_tokenizer_names_the_extra_without_transformers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=re.escape(pip_install("text2image"))):
        open_tokenizer(folder, encoder())
