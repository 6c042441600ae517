"""Figures for files: whoever draws on a screen of their own is left alone."""

from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from dmd2_jax.pictures.figure import new_figure, save

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def backend_of_user():
    before = matplotlib.get_backend(auto_select=False)
    matplotlib.use("svg")
    yield "svg"
    if before is not None:
        matplotlib.use(before)


def test_a_figure_is_written_and_leaves_backend_and_figures_of_the_user(backend_of_user, tmp_path):
    from matplotlib import pyplot

    theirs = pyplot.figure()
    figure = new_figure(2, 1)
    figure.add_subplot().plot([0, 1])
    save(figure, tmp_path / "new" / "x.png")
    with Image.open(tmp_path / "new" / "x.png") as image:
        assert (image.format, image.size) == ("PNG", (200, 100))
    assert matplotlib.get_backend(auto_select=False) == backend_of_user
    assert pyplot.get_fignums() == [theirs.number]
    pyplot.close(theirs)


def test_the_package_never_touches_pyplot():
    for file in (ROOT / "dmd2_jax").rglob("*.py"):
        text = file.read_text()
        assert "import pyplot" not in text and "matplotlib.pyplot" not in text, file
        assert "matplotlib.use" not in text, file
