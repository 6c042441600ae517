"""The engine of `make chaos`: what must not be is seen, and makes it fail."""

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.chaos import engine
from tests.chaos.__main__ import DOCS, kinds_of, tried
from tests.chaos.engine import Said, Try, asked, outcome
from tests.chaos.table import BEGIN, END, Row, markdown, replaced
from tests.tiny import RECIPE


@pytest.mark.parametrize(
    ("said", "same", "untouched", "expected"),
    [
        (Said(0, ""), True, True, "harmless"),
        (Said(0, "WARNING: checkpoint 4 is damaged"), True, True, "noticed"),
        (Said(0, "WARNING: checkpoint 4 is damaged"), False, True, "silent"),
        (Said(2, "dmd2: x is damaged"), False, True, "refused"),
        (Said(2, "dmd2: x is damaged"), False, False, "lost"),
        (Said(1, "Traceback (most recent call last)"), False, True, "traceback"),
        (Said(1, "dmd2: one\ndmd2: two"), False, True, "traceback"),
        (Said(None, "ValueError"), True, True, "traceback"),
        (Said(0, "", hung=True), True, True, "hung"),
    ],
)
def test_outcome_has_one_name(said: Said, same: bool, untouched: bool, expected: str) -> None:
    assert outcome(said, lambda: same, lambda: untouched) == expected


def test_a_command_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(engine, "dmd2", lambda *words: (tmp_path / "pipe").read_text())
    assert engine.command("x", seconds=0.1).hung


def test_what_ran_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "dmd2", lambda *words: (tmp_path / engine.MARKER).touch() or 0)
    assert asked(tmp_path, "x", "y", same=lambda: True, kept=()).outcome == "executed"


def test_what_a_refusal_removes_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").touch()

    def refuse(*words: str) -> int:
        (tmp_path / "kept").unlink()
        print("dmd2: no")
        return 2

    monkeypatch.setattr(engine, "dmd2", refuse)
    assert asked(tmp_path, "x", "y", same=lambda: True, kept=(tmp_path,)).outcome == "lost"


def test_a_refusal_is_one(tmp_path: Path) -> None:
    it = asked(tmp_path, "x", "sample", f"--workdir={tmp_path}", same=lambda: False, kept=())
    assert it.outcome == "refused" and "no run in workdir" in it.said
    with pytest.raises(AssertionError, match="no try at all"):
        asked(tmp_path, "x", "sample", f"--config={RECIPE}", same=lambda: False, kept=())


def test_a_try_can_be_made_again_alone() -> None:
    kind = SimpleNamespace(
        NAME="x", TRIES=5, attempt=lambda dice, folder: Try(str(dice.random()), "silent")
    )
    _, every = tried("x", kind, seed=3)
    _, (alone,) = tried("x", kind, seed=3, only=2)
    assert alone == every[2] and len({it.member for _, it in every}) == 5


def test_table_counts_what_is_wrong_and_takes_its_place() -> None:
    rows = [
        Row("one", Counter(refused=3, silent=1), 2.0, 1.0),
        Row("two", Counter(harmless=2), 1.0, 0.5),
    ]
    text = markdown(rows, "--seed=7 --share=0.5", "2026-01-02", "abc")
    assert "| one | 4 | 3 | 0 | 0 | 1 silent | 1 |" in text
    assert "| **all** | 6 | 3 | 0 | 2 | 1 silent | 2 |" in text
    assert 'CHAOS_ARGS="--seed=7 --share=0.5"`' in text and "2026-01-02, at abc" in text
    assert replaced(f"a {BEGIN} old {END} b", text) == f"a {BEGIN}\n{text}\n{END} b"


def test_every_kind_is_there_and_the_page_has_a_place_for_the_table() -> None:
    found = kinds_of("").values()
    assert len({kind.NAME for kind in found}) == len(found) >= 16
    assert sum(kind.TRIES for kind in found) >= 300
    assert all(callable(kind.attempt) for kind in found)
    assert "x" in replaced(DOCS.read_text(), "x")
