"""The picture of an ablation."""

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.pictures import seed_points as module
from dmd2_jax.pictures.seed_points import seed_points


@pytest.fixture
def axes(monkeypatch, tmp_path):
    """Draw, and return what is drawn on."""

    def draw(values, **options):
        figures = []
        monkeypatch.setattr(module, "save", lambda figure, path: figures.append(figure))
        seed_points(values, tmp_path / "x.png", title="rows", figure="FID", **options)
        return figures[0].axes[0]

    return draw


def test_seed_points_draws_mean_and_deviation_of_each_row_on_its_line(axes):
    drawn = axes({"a": [1.0, 3.0], "b": [], "c": [5.0]})
    means = [tuple(bars.lines[0].get_xydata()[0]) for bars in drawn.containers]
    assert means == [(2.0, 0.0), (5.0, 2.0)]
    (segment,) = drawn.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(segment[:, 0], [2 - 2**0.5, 2 + 2**0.5])


def test_seed_points_names_the_rows_from_the_top(axes):
    drawn = axes({"a": [1.0], "b": [2.0]})
    assert [label.get_text() for label in drawn.get_yticklabels()] == ["a", "b"]
    assert drawn.yaxis_inverted()


def test_seed_points_draws_what_all_are_compared_with(axes):
    drawn = axes({"a": [1.0]}, lines={"teacher": 0.5})
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["teacher"]
    np.testing.assert_array_equal(drawn.lines[-1].get_xdata(), [0.5, 0.5])


def test_seed_points_writes_a_png(tmp_path):
    seed_points({"a": [1.0]}, tmp_path / "made" / "x.png", title="rows", figure="FID")
    assert np.asarray(Image.open(tmp_path / "made" / "x.png")).shape[1] == 640


def test_seed_points_refuses_no_runs(tmp_path):
    with pytest.raises(ValueError, match="got no runs"):
        seed_points({"a": []}, tmp_path / "x.png", title="rows", figure="FID")
