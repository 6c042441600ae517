"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from dmd2_jax.runtime.whole_file import clear_partial, whole_file


def test_whole_file_replaces_the_target_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    target.write_text("old")
    with whole_file(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_whole_file_leaves_the_target_alone_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    target.write_text("old")

    def write() -> None:
        with whole_file(target) as partial:
            partial.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_clear_partial_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("weights.bin", ".hidden", "a.partial.bin")]
    for file in kept:
        file.write_text("keep me")
    context = whole_file(tmp_path / "weights.bin")
    partial = context.__enter__()  # and never left, as by SIGKILL
    partial.write_text("half")
    clear_partial(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
