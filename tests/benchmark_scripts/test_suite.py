"""The table of speed: turns, ratios, and this project's other commits as a peer."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import suite
from benchmarks.contenders import OURS, ROWS

ROOT = Path(__file__).resolve().parents[2]


def test_contenders_take_turns_and_the_first_is_not_counted() -> None:
    done: list[str] = []

    def contender(name: str, seconds: float) -> float:
        done.append(name)
        return seconds if len(done) > 2 else 99.0

    both = {OURS: lambda: contender(OURS, 1.0), "peer": lambda: contender("peer", 4.0)}
    assert suite.turns(both, 2) == {OURS: [1.0, 1.0], "peer": [4.0, 4.0]}
    assert done == [OURS, "peer"] * 3


def test_ratio_is_that_of_a_turn_not_of_two_medians() -> None:
    """The second turn was slow for both: the ratio is 0.5 in each."""
    figures = {"fid": {OURS: [1.0, 10.0, 2.0], "peer": [2.0, 20.0, 4.0]}, "save": {OURS: [1.0]}}
    _, first, second = (row.split() for row in suite.table(figures).splitlines())
    assert first[-5:] == ["s", "peer", "0.50", "0.50", "0.50"]
    assert second[-6:] == ["-", "not", "installed", "-", "-", "-"]
    assert " ".join(first).startswith(f"{ROWS['fid'].unit} 2 s 4 s")


def test_another_commit_of_this_project_is_timed_in_turns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    words = ["--rows=fid", "--small", "--rounds=3", "--against=HEAD", f"--json={file}"]
    monkeypatch.setattr(sys, "argv", ["suite", *words])
    monkeypatch.setattr(suite, "prepare_backend", lambda: None)  # the tests' own is prepared
    suite.main()
    assert "FID of collected statistics" in capsys.readouterr().out
    seconds = json.loads(file.read_text())["fid"]
    assert list(seconds) == [OURS, "HEAD"]
    assert all(len(times) == 3 and min(times) > 0 for times in seconds.values())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--rows=unet,none", "--rows has none, expected some of cycle,"),
        ("--rounds=2", "at least 3"),
    ],
)
def test_suite_refuses(
    word: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["suite", word])
    monkeypatch.setattr(suite, "prepare_backend", lambda: None)
    with pytest.raises(SystemExit):
        suite.main()
    assert message in capsys.readouterr().err
