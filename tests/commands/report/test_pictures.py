"""Pictures inside the page: what is shown of them, and how large they may be."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.commands.report import sample_section as section
from dmd2_jax.commands.report.pictures import embed, evenly
from dmd2_jax.commands.report.runs import read_runs
from tests.commands.report.folders import Page, write_run


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return an image that PNG cannot make smaller."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)


def png(uri: str) -> bytes:
    """Return the file within a data: URI."""
    return base64.b64decode(uri.removeprefix("data:image/png;base64,"))


def test_embed_keeps_the_pixels_of_what_fits(tmp_path: Path) -> None:
    Image.fromarray(noise(20, 30)).save(tmp_path / "x.png")
    picture = embed(tmp_path / "x.png", 10_000)
    assert (picture.width, picture.height) == (30, 20)
    np.testing.assert_array_equal(Image.open(io.BytesIO(png(picture.uri))), noise(20, 30))


def test_embed_makes_smaller_what_does_not_fit_and_keeps_its_shape(tmp_path: Path) -> None:
    Image.fromarray(noise(200, 300)).save(tmp_path / "x.png")
    picture = embed(tmp_path / "x.png", 30_000)
    assert 10_000 < len(png(picture.uri)) <= 30_000
    assert picture.width / picture.height == pytest.approx(1.5, rel=0.02)


def test_embed_is_never_wider_than_the_page_needs(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 100)).save(tmp_path / "x.png")
    assert embed(tmp_path / "x.png", 10**6)[1:] == (960, 48)


def test_embed_takes_no_text_of_the_file_along(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "a private word")
    Image.fromarray(noise(4, 4)).save(tmp_path / "x.png", pnginfo=info)
    assert b"private" in (tmp_path / "x.png").read_bytes()
    assert b"private" not in png(embed(tmp_path / "x.png", 10_000).uri)


@pytest.mark.parametrize("kind", ["JPEG", "cut", "bomb", "no size fits"])
def test_embed_gives_up_what_it_cannot_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, most = tmp_path / "x.png", 100_000
    Image.fromarray(noise(100, 100)).save(path, "JPEG" if kind == "JPEG" else "PNG")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    if kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6_000)  # a warning from there to twice that
    if kind == "no size fits":
        most = 50
    assert embed(path, most) is None


def test_evenly_keeps_the_ends() -> None:
    assert evenly(list(range(0, 101)), 5) == [0, 25, 50, 75, 100]
    assert evenly([3, 7], 5) == [3, 7]


def test_sample_section_keeps_all_grids_within_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(section, "_BYTES", 120_000)
    for name in ("a", "b"):
        write_run(tmp_path / name, grids={i: noise(120, 120, i) for i in range(1, 5)})
    runs = read_runs([str(tmp_path / "a"), str(tmp_path / "b")])
    images = Page(section.sample_section(runs)).all("img")
    sizes = [len(png(image["src"])) for image in images]
    assert len(sizes) == 8
    assert max(sizes) <= 15_000
    assert sum(sizes) > 60_000


def test_sample_section_begins_with_what_evaluate_drew(tmp_path: Path) -> None:
    grids, drawn = {1: noise(4, 4, 1)}, noise(6, 9, 2)
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, grids=grids, figures={"x": 1})
    Image.fromarray(drawn).save(tmp_path / "b" / "compared.png")
    (tmp_path / "c" / "compared.png").symlink_to(tmp_path / "b" / "compared.png")
    page = Page(section.sample_section(read_runs([str(tmp_path / name) for name in "abc"])))
    first, *others = page.all("img")
    np.testing.assert_array_equal(Image.open(io.BytesIO(png(first["src"]))), drawn)
    assert "Real images" in first["alt"] and " b " in first["alt"]
    assert len(others) == 3  # the grids: a link is not followed
    alone = Page(section.sample_section(read_runs([str(tmp_path / "a")])))
    assert "`dmd2 evaluate` draws real, teacher's and student's images here" in alone.text


def test_sample_section_shows_at_most_24_grids_of_a_run(tmp_path: Path) -> None:
    grid = np.zeros((2, 2), np.uint8)
    write_run(tmp_path / "a", grids={10 * i: grid for i in range(1, 51)})
    page = Page(section.sample_section(read_runs([str(tmp_path / "a")])))
    steps = [int(frame["data-step"]) for frame in page.all("li")]
    assert len(steps) == 24
    assert (steps[0], steps[-1]) == (10, 500)
    assert "24 grids of each run" in page.text
