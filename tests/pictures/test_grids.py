"""Grids, class rows, headed rows and animations: what is in the files."""

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.pictures import grids as pictures


def numbered(n, size=4, channels=1):
    """n images, image i filled with grey value 10 i."""
    values = 10 * np.arange(n, dtype=np.uint8)
    return np.broadcast_to(values[:, None, None, None], (n, size, size, channels)).copy()


def test_montage_fills_row_by_row_and_leaves_missing_images_white():
    canvas = pictures.montage(numbered(5), 2, 3, upscale=2, gap=1)
    assert canvas.shape == (17, 26, 3)
    centres = canvas[4::9, 4::9, 0]
    np.testing.assert_array_equal(centres, [[0, 10, 20], [30, 40, 255]])


def test_montage_repeats_pixels():
    image = np.array([[0, 50], [100, 150]], np.uint8)[None, ..., None]
    canvas = pictures.montage(image, 1, 1, upscale=3)
    np.testing.assert_array_equal(canvas[..., 0], np.kron(image[0, ..., 0], np.ones((3, 3))))


def test_montage_enlarges_to_the_cell_by_default():
    assert pictures.montage(numbered(1, size=8), 1, 1).shape == (48, 48, 3)
    assert pictures.montage(numbered(1, size=28), 1, 1).shape == (56, 56, 3)
    assert pictures.montage(numbered(1, size=64), 1, 1).shape == (64, 64, 3)


def test_montage_takes_floats_and_colour():
    image = np.zeros((1, 1, 1, 3), np.float32)
    image[..., 0], image[..., 2] = 2.0, -1.0
    np.testing.assert_array_equal(pictures.montage(image, 1, 1, upscale=1), [[[255, 128, 0]]])


@pytest.mark.parametrize("shape", [(7, 4, 4, 1), (2, 4, 4, 2), (2, 4, 4)])
def test_montage_refuses_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="expected"):
        pictures.montage(np.zeros(shape, np.uint8), 2, 3)


def test_image_grid_writes_the_montage(tmp_path):
    path = tmp_path / "new" / "grid.png"
    pictures.image_grid(numbered(6), path, rows=2, cols=3, upscale=2)
    written = np.asarray(Image.open(path))
    expected = pictures.montage(numbered(6), 2, 3, upscale=2)
    np.testing.assert_array_equal(written[8:-8, 8:-8], expected)


def test_image_grid_writes_labels_above_the_columns(tmp_path):
    path = tmp_path / "grid.png"
    pictures.image_grid(numbered(3, size=48), path, rows=1, cols=3, labels=["a", "", "c"])
    header = np.asarray(Image.open(path))[:26].min(axis=(0, 2))
    inked = [bool((header[8 + 52 * i : 8 + 52 * i + 48] < 128).any()) for i in range(3)]
    assert inked == [True, False, True]


def test_image_grid_refuses_labels_of_another_number(tmp_path):
    with pytest.raises(ValueError, match="2 labels, expected 3"):
        pictures.image_grid(numbered(3), tmp_path / "x.png", rows=1, cols=3, labels="ab")
    assert not (tmp_path / "x.png").exists()


def test_first_of_each_class_has_one_column_a_class():
    labels = np.array([2, 0, 1, 1, 0, 2, 2])
    chosen = pictures.first_of_each_class(numbered(7), labels, 3, 2)[:, 0, 0, 0] // 10
    np.testing.assert_array_equal(chosen, [1, 2, 0, 4, 3, 5])


def test_first_of_each_class_names_the_class_that_lacks_images():
    with pytest.raises(ValueError, match=r"\{1: 0\}, expected at least 1"):
        pictures.first_of_each_class(numbered(2), np.array([0, 2]), 3, 1)


def test_class_rows_shows_every_image_of_every_section(tmp_path):
    path = tmp_path / "summary.png"
    sections = {"real": numbered(6, size=8), "student": numbered(3, size=8) + 100}
    pictures.class_rows(sections, path, class_names="abc", title="title")
    written = np.asarray(Image.open(path))[..., 0]
    values, counts = np.unique(written, return_counts=True)
    large = {int(v) for v, c in zip(values, counts, strict=True) if c >= 60 * 60}
    assert large == {0, 10, 20, 30, 40, 50, 100, 110, 120, 255}


def test_class_rows_refuses_half_a_row(tmp_path):
    with pytest.raises(ValueError, match="'real' has 4 images, expected a multiple of 3"):
        pictures.class_rows({"real": numbered(4)}, tmp_path / "x.png", class_names="abc")


def test_headed_rows_puts_every_row_beside_its_heading(tmp_path):
    path = tmp_path / "rows.png"
    small, large = numbered(2, size=48) + 10, numbered(2, size=48) + 100
    pictures.headed_rows([[("first", small)], [("second", large), ("", small)]], path)
    grey = np.asarray(Image.open(path))[..., 0]
    tops = [8, 8 + 48 + 12, 8 + 48 + 12 + 48 + 4]  # more room between groups than within
    assert grey.shape[0] == tops[-1] + 48 + 8
    left = grey.shape[1] - 8 - 2 * 48 - 4
    for top, values in zip(tops, [(10, 20), (100, 110), (10, 20)], strict=True):
        for i, value in enumerate(values):
            x = left + i * 52
            assert (grey[top : top + 48, x : x + 48] == value).all()
    inked = [bool((grey[top : top + 48, : left - 4] < 128).any()) for top in tops]
    assert inked == [True, True, False]


def test_headed_rows_refuses_nothing_to_write(tmp_path):
    with pytest.raises(ValueError, match="no rows for .*expected at least one"):
        pictures.headed_rows([], tmp_path / "x.png")


def test_animate_shows_the_first_and_the_last_of_many_frames(tmp_path):
    files = []
    for i in range(10):
        files.append(tmp_path / f"grid_{i}.png")
        Image.fromarray(np.full((4, 6, 3), 20 * i, np.uint8)).save(files[-1])
    pictures.animate(files, tmp_path / "progress.gif", most=4, seconds=0.1)
    with Image.open(tmp_path / "progress.gif") as gif:
        shown = []
        for i in range(gif.n_frames):
            gif.seek(i)
            shown.append((gif.convert("RGB").getpixel((0, 0))[0], gif.info["duration"]))
        assert gif.size == (6, 4) and gif.info["loop"] == 0
    assert shown == [(0, 100), (60, 100), (120, 100), (180, 1000)]


def test_animate_refuses_no_frames(tmp_path):
    with pytest.raises(ValueError, match="no frames for .*expected at least one"):
        pictures.animate([], tmp_path / "progress.gif")
    assert not (tmp_path / "progress.gif").exists()
