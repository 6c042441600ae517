"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from dmd2_jax.runtime.whole_file import clear_partial, whole_file, whole_folder


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


def test_whole_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "student"
    with whole_folder(target) as partial:
        (partial / "unet").mkdir()
        (partial / "unet" / "config.json").write_text("{}")
        assert not target.exists()
    assert (target / "unet" / "config.json").read_text() == "{}"
    assert list(tmp_path.iterdir()) == [target]


def test_whole_folder_leaves_nothing_on_failure(tmp_path: Path) -> None:
    def write() -> None:
        with whole_folder(tmp_path / "student") as partial:
            (partial / "half.json").write_text("{")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_whole_folder_takes_the_place_of_no_folder_with_files(tmp_path: Path) -> None:
    target = tmp_path / "student"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")

    def write() -> None:
        with whole_folder(target) as partial:
            (partial / "new").write_text("new")

    with pytest.raises(OSError):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["student", "thesis.txt"]
