"""`dmd2 sample` to single images: three forms of the same pixels, resumed, and never mixed."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.metrics.features.images import image_batches, open_images
from dmd2_jax.sampling.images import SampledImages
from tests.tiny import contents, dmd2, refused, scratch, student_run

NUM = 18  # on eight devices batches of 8


def sample(out: Path | str, *more: str) -> int:
    words = [f"--workdir={student_run()}", f"--num={NUM}", "--batch_size=3", "--classes=3,7"]
    return dmd2("sample", *words, f"--out={out}", *more)


@pytest.fixture(scope="module")
def made() -> Path:
    """A folder with the three forms; do not change it."""
    folder = scratch()
    for name in ("samples", "samples.zip", "samples.npz"):
        assert sample(folder / name) == 0
    return folder


def test_all_forms_hold_the_same_images_and_labels(made: Path) -> None:
    with np.load(made / "samples.npz") as arrays:
        assert sorted(arrays.files) == ["arr_0", "arr_1"]
        pixels, labels = arrays["arr_0"], arrays["arr_1"]
    assert pixels.shape == (NUM, 8, 8, 1) and pixels.dtype == np.uint8 and pixels.std() > 0
    assert labels.dtype == np.int64 and labels.tolist() == [3, 7] * 9
    for name in ("samples", "samples.zip", "samples.npz"):
        (batch,) = image_batches(open_images(made / name), 100)
        np.testing.assert_array_equal(batch["image"], pixels)
        np.testing.assert_array_equal(batch["label"], labels)
    assert sorted(p.name for p in made.iterdir()) == ["samples", "samples.npz", "samples.zip"]


def test_single_images_are_those_of_the_grid(made: Path, tmp_path: Path) -> None:
    assert sample(tmp_path / "grid.png") == 0
    grid = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    with Image.open(made / "samples" / "00000" / "img00000000.png") as image:
        first = np.asarray(image)
    np.testing.assert_array_equal(grid[8:56, 8:56], first.repeat(6, 0).repeat(6, 1))


class KilledError(Exception):
    """In place of a signal that ends the process."""


@pytest.mark.parametrize("name", ["samples", "samples.zip", "samples.npz"])
def test_a_killed_command_goes_on_and_the_bytes_are_the_same(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = SampledImages.parts
    begun: list[int] = []

    def killed(self, *args):
        for begin, batch in parts(self, *args):
            if begin == 16:
                raise KilledError
            yield begin, batch

    def noted(self, *args):
        for begin, batch in parts(self, *args):
            begun.append(begin)
            yield begin, batch

    monkeypatch.setattr(SampledImages, "parts", killed)
    with pytest.raises(KilledError):
        sample(tmp_path / name)
    monkeypatch.setattr(SampledImages, "parts", noted)
    folder = tmp_path / (name if name == "samples" else f"{name}.parts")
    torn = folder / "00000" / "img00000001.png"  # as a crash of the machine may leave it
    torn.write_bytes(torn.read_bytes()[:40])
    assert sample(tmp_path / name) == 0
    assert begun == [0, 16]
    there = contents(made / name) if name == "samples" else (made / name).read_bytes()
    got = contents(tmp_path / name) if name == "samples" else (tmp_path / name).read_bytes()
    assert got == there
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["samples", "samples.zip", "samples.npz"])
def test_what_is_complete_is_left_alone(
    name: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = made / name
    out = tmp_path / name
    shutil.copytree(whole, out) if whole.is_dir() else shutil.copy(whole, out)
    before = contents(tmp_path)
    assert sample(out) == 0
    assert "18 images, which were there already" in capsys.readouterr().out
    assert contents(tmp_path) == before
    for flag in ("--seed=1", "--num=9", "--classes=1", "--which=teacher"):
        words = [f"--workdir={student_run()}", f"--num={NUM}", "--classes=3,7", f"--out={out}"]
        said = refused(capsys, "sample", *words, flag)
        assert "holds what was made otherwise: " in said and "choose another" in said
    assert contents(tmp_path) == before


def test_what_others_made_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--workdir={student_run()}", "--num=2"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    np.savez(tmp_path / "mine.npz", arr_0=np.zeros(3))
    for name in ("mine", "mine.npz"):
        before = contents(tmp_path)
        assert "choose another" in refused(capsys, "sample", *words, f"--out={tmp_path / name}")
        assert contents(tmp_path) == before
    said = refused(capsys, "sample", *words, f"--out={tmp_path / 'x.tar'}")
    assert "ends in .tar, expected one of .png" in said and ".zip, .npz for single images" in said


def test_an_image_that_is_not_finite_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = SampledImages.parts

    def spoilt(self, *args):
        for begin, batch in parts(self, *args):
            image = np.array(batch["image"])
            image[-1] = np.nan
            yield begin, {**batch, "image": image}

    monkeypatch.setattr(SampledImages, "parts", spoilt)
    words = [f"--workdir={student_run()}", "--num=3", f"--out={tmp_path / 'x'}"]
    assert "image 2 of " in refused(capsys, "sample", *words)


def test_a_zip_is_what_zipfile_and_edm_read(made: Path) -> None:
    with zipfile.ZipFile(made / "samples.zip") as archive:
        assert archive.testzip() is None
        labels = json.loads(archive.read("dataset.json"))["labels"]
    assert labels[1] == ["00000/img00000001.png", 7] and len(labels) == NUM
