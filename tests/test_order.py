"""The longest files come first; every name of one is a file."""

from pathlib import Path

from tests.order import LONGEST, longest_first

TESTS = Path(__file__).resolve().parent


def test_longest_names_files() -> None:
    assert [name for name in LONGEST if not (TESTS / name).is_file()] == []


def test_longest_first_moves_long_files_and_keeps_the_rest() -> None:
    files = [TESTS / name for name in ("a.py", LONGEST[1], "b.py", LONGEST[0])]
    assert longest_first(files, lambda file: file) == [files[3], files[1], files[0], files[2]]
