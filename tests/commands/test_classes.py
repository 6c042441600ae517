"""Classes keep their meaning from the data to the student: through the commands themselves.

Ten folders of grey 8 x 8 images, so that the programs are those of the digits, which are compiled.
"""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.config.load import plain
from dmd2_jax.data import image_folder
from dmd2_jax.recipe.classes import data_record, read_record, weights_record, write_record
from dmd2_jax.runtime.integrity import read_manifest, sealed
from tests.data.images import picture, png, write_folder
from tests.tiny import RECIPE, contents, dmd2, get_config, refused, scratch

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")


def animals(folder: Path) -> Path:
    files = {
        f"{name}/{i}.png": png(picture(10 * k + i, channels=1))
        for k, name in enumerate(NAMES)
        for i in range(3)
    }
    return write_folder(folder, files)


def words(command: str, data: Path, run: Path, *more: str) -> list[str]:
    source = ("--config.data.name=image_folder", f"--config.data.path={data}")
    return [command, f"--config={RECIPE}", *source, f"--workdir={run}", *more]


@functools.cache
def trained() -> tuple[Path, Path]:
    """The data and a teacher of them, trained for two steps; do not change them."""
    folder = scratch()
    data, run = animals(folder / "animals"), folder / "teacher"
    assert dmd2(*words("train-teacher", data, run, "--config.teacher.steps=2")) == 0
    return data, run


@pytest.fixture
def mine(tmp_path: Path) -> tuple[Path, Path]:
    """A copy of both, to be changed."""
    data, run = trained()
    shutil.copytree(data, tmp_path / "animals")
    shutil.copytree(run, tmp_path / "teacher")
    return tmp_path / "animals", tmp_path / "teacher"


def test_run_checkpoint_and_weights_say_which_class_is_which_number() -> None:
    _, run = trained()
    record = read_record(run)
    assert record is not None and record.class_names == NAMES
    assert record.listing is not None and record.listing.counts == (3,) * 10
    assert weights_record(run / "teacher.safetensors") == record
    assert read_manifest(run / "checkpoints" / "2")["extra"]["data"] == record.to_json()


def test_renamed_folder_is_refused_on_resuming_and_by_the_student(
    mine: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = mine
    (data / "ant").rename(data / "zebra")
    before = contents(run)
    longer = "--config.teacher.steps=3"
    student = words("distill", data, tmp_path / "student", f"--config.teacher.weights={run}")
    for line in (words("train-teacher", data, run, longer), student):
        message = refused(capsys, *line)
        assert "class 0 is 'bee', expected 'ant'" in message
        assert "new: 'zebra'; missing: 'ant'" in message
    assert contents(run) == before
    assert not (tmp_path / "student").exists()


def test_new_image_is_refused_until_it_is_allowed(
    mine: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = mine
    shutil.copy(data / "bee/0.png", data / "bee/new.png")
    longer = words("train-teacher", data, run, "--config.teacher.steps=3")
    message = refused(capsys, *longer)
    assert "got 31 examples, expected 30; of class 1 'bee' 4, expected 3" in message
    assert dmd2(*longer, "--allow_change=data", "--dry_run") == 0
    assert "accepted by allow_change: image_folder animals lists" in capsys.readouterr().err
    # As a resumption that is no dry run writes it; the checkpoints still have the former one.
    write_record(run, data_record(image_folder.load(str(data), "train", 8)))
    assert dmd2(*longer, "--dry_run") == 0


def test_files_that_changed_are_named_on_resuming_and_by_the_student(
    mine: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = mine
    (data / "bee/0.png").write_bytes(png(picture(99, channels=1)) + b"\0")
    (data / "cat/1.png").rename(data / "cat/9.png")
    student = words("distill", data, tmp_path / "student", f"--config.teacher.weights={run}")
    for line in (words("train-teacher", data, run, "--config.teacher.steps=3"), student):
        message = refused(capsys, *line)
        assert "1 added (train/cat/9.png); 1 gone (train/cat/1.png)" in message
        assert "1 of another size (train/bee/0.png)" in message and "--allow_change=data" in message
    assert dmd2(*student, "--allow_change=data", "--dry_run") == 0
    assert "accepted by allow_change: image_folder animals lists" in capsys.readouterr().err


def test_moved_and_zipped_data_are_the_same(mine: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = mine
    shutil.make_archive(str(tmp_path / "elsewhere"), "zip", tmp_path, "animals")
    shutil.rmtree(data)
    zipped = words("train-teacher", tmp_path / "elsewhere.zip", run, "--config.teacher.steps=2")
    assert dmd2(*zipped, "--dry_run") == 0


def test_run_of_an_earlier_release_goes_on(mine: tuple[Path, Path]) -> None:
    data, run = mine
    (run / "data.json").unlink()
    manifest = read_manifest(run / "checkpoints/2")
    del manifest["extra"]["data"]
    again = sealed(manifest["arrays"], manifest["extra"])
    (run / "checkpoints/2/meta/metadata").write_text(json.dumps(again))
    assert dmd2(*words("train-teacher", data, run, "--config.teacher.steps=2", "--dry_run")) == 0


def test_sample_takes_names_and_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = trained()
    out, line = tmp_path / "x.png", ["sample", f"--workdir={run}", "--num=4"]
    assert dmd2(*line, "--classes=hen,2", f"--out={out}") == 0
    assert "4 images of 7 'hen', 2 'cat': " in capsys.readouterr().out
    image = np.asarray(Image.open(out))
    assert image.shape[0] == 2 * 48 + 4 + 16 + 20  # headings above two columns
    assert "the nearest names are 'hen'" in refused(capsys, *line, "--classes=hem")


def test_grids_of_a_run_have_a_row_a_class_and_its_name_beside_it() -> None:
    (grid,) = trained()[1].glob("grid_*.png")
    width, height = Image.open(grid).size
    assert height == 10 * 52 - 4 + 16
    left = width - (4 * 52 - 4 + 8)
    assert left > 48  # room for the longest, "8 ibis"
    beside = np.asarray(Image.open(grid).convert("L"))[:, :left]
    for row in range(10):
        assert beside[8 + 52 * row : 8 + 52 * row + 48].min() < 128, NAMES[row]


def test_data_shows_number_name_and_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words("data", trained()[0], tmp_path, "--config.data.test_fraction=0")
    line.remove(f"--workdir={tmp_path}")
    assert dmd2(*line, f"--out={tmp_path / 'd.png'}", "--classes") == 0
    text = capsys.readouterr().out
    assert "\n  0  ant   3  #" in text
    assert "classes:\n  0  ant\n  1  bee\n" in text


def test_report_says_which_number_is_which_class(tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    assert dmd2("report", f"--workdir={trained()[1]}", f"--out={out}") == 0
    assert "0 ant, 1 bee, 2 cat" in out.read_text()


def test_evaluate_refuses_a_judge_of_other_classes(
    mine: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = mine
    (data / "ant").rename(data / "zebra")
    record = json.loads((run / "config.json").read_text())
    del record["seal"]  # by which an edited config is accepted
    record["config"]["data"] |= {"path": str(data), "test_fraction": 0.4}  # one image a class
    (run / "config.json").write_text(json.dumps(record))
    message = refused(capsys, "evaluate", f"--workdir={run}", "--num=20")
    assert "class 0 is 'bee', expected 'ant'" in message
    assert "features=inception" in message


def test_students_teacher_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier release recorded it, relative to where the training was started."""
    shutil.copytree(trained()[1], tmp_path / "runs/teacher")
    config = get_config().unlock()
    config.teacher.weights = "runs/teacher"
    (tmp_path / "runs/student").mkdir()
    record = {"command": "distill", "config": plain(config)}
    (tmp_path / "runs/student/config.json").write_text(json.dumps(record))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    line = ["sample", f"--workdir={tmp_path}/runs/student", "--which=teacher", "--num=4"]
    assert dmd2(*line, "--out=x.png") == 0
