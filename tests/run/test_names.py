"""What stands in the place of a run's own files is refused before the first step."""

import os
from pathlib import Path

import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.run.names import check_names
from tests.tiny import RECIPE, contents, refused, student_run, teacher_run


def test_every_name_that_a_run_writes_is_known(tmp_path: Path) -> None:
    for run in (teacher_run(), student_run()):
        check_names(run)
        for file in run.iterdir():
            taken = tmp_path / run.name / file.name
            taken.parent.mkdir(exist_ok=True)
            if file.is_dir():
                taken.touch()
            else:
                taken.mkdir()
            with pytest.raises(Refused, match=rf"{file.name} is a (file|folder), expected a "):
                check_names(taken.parent)
            taken.unlink() if taken.is_file() else taken.rmdir()


@pytest.mark.parametrize("name", ["tensorboard", "teacher_pairs", "profile"])
def test_a_file_in_the_place_of_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(Refused, match=f"{name} is a file, expected a folder"):
        check_names(tmp_path)


def test_a_pipe_is_refused_and_other_names_and_links_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "curves.png").symlink_to(tmp_path / "nothing")
    check_names(tmp_path)
    check_names(tmp_path / "new")
    os.mkfifo(tmp_path / "exported.json")
    with pytest.raises(Refused, match=r"exported\.json is a pipe"):
        check_names(tmp_path)


@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_a_training_is_refused_before_it_begins(
    dry: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exported.json").mkdir()
    words = ("train-teacher", f"--config={RECIPE}", f"--workdir={tmp_path}", *dry)
    assert "exported.json is a folder, expected a file" in refused(capsys, *words)
    assert not contents(tmp_path)
