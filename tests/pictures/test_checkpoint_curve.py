"""The picture of FID over checkpoints."""

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.pictures import checkpoint_curve as module
from dmd2_jax.pictures.checkpoint_curve import checkpoint_curve


@pytest.fixture
def axes(monkeypatch, tmp_path):
    """Draw, and return what is drawn on."""

    def draw(values, **options):
        figures = []
        monkeypatch.setattr(module, "save", lambda figure, path: figures.append(figure))
        checkpoint_curve(values, tmp_path / "x.png", title="a run", **options)
        return figures[0].axes[0]

    return draw


def test_checkpoint_curve_goes_through_the_checkpoints_in_order(axes):
    line = axes({200: 3.0, 100: 5.0}).lines[0]
    np.testing.assert_array_equal(line.get_xydata(), [[100, 5], [200, 3]])


def test_checkpoint_curve_names_the_best_checkpoint(axes):
    (text,) = axes({100: 5.0, 200: 3.0, 300: 4.0}).texts
    assert text.get_text() == "3.000 at 200" and text.xy == (200, 3.0)


def test_checkpoint_curve_draws_the_floor(axes):
    *_, line = axes({100: 5.0}, floor=0.5).lines
    np.testing.assert_array_equal(line.get_ydata(), [0.5, 0.5])


def test_checkpoint_curve_writes_a_png(tmp_path):
    checkpoint_curve({1: 2.0, 2: 1.0}, tmp_path / "made" / "x.png", title="a run")
    assert np.asarray(Image.open(tmp_path / "made" / "x.png")).shape[:2] == (380, 640)


def test_checkpoint_curve_refuses_no_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="got no checkpoints"):
        checkpoint_curve({}, tmp_path / "x.png", title="a run")
