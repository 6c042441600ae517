"""The picture of a run's metrics: what is in the file."""

import json

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.pictures import curves
from dmd2_jax.pictures.figure import new_figure


def test_curves_leave_out_what_is_no_finite_number():
    rows = [
        {"step": 1, "loss": 2.0, "note": "text", "flag": True, "histogram": [1, 2]},
        {"step": 3, "loss": None},
        {"step": 5, "loss": float("nan")},
        {"step": 7, "loss": 4, "fid": 9.0},
        {"loss": 5.0},
    ]
    found = curves._curves(rows)
    assert list(found) == ["loss", "fid"]
    np.testing.assert_array_equal(found["loss"], [[1, 7], [2, 4]])
    np.testing.assert_array_equal(found["fid"], [[7], [9]])


@pytest.mark.parametrize("panels", [1, 3, 7])
def test_loss_curves_draws_a_line_in_every_panel(tmp_path, panels):
    rows = [{"step": i} | {f"m{j}": 10.0 ** (i / 20) for j in range(panels)} for i in range(60)]
    path = tmp_path / "curves.png"
    curves.loss_curves(rows, path, x_label="cycle")
    written = np.asarray(Image.open(path).convert("RGB")).astype(int)
    cols = min(3, panels)
    grid_rows = -(-panels // cols)
    height, width = written.shape[0] // grid_rows, written.shape[1] // cols
    for j in range(cols * grid_rows):
        top, left = j // cols * height, j % cols * width
        panel = written[top : top + height, left : left + width]
        blue = (np.abs(panel - [0x1F, 0x5A, 0x94]).sum(axis=-1) < 10).sum()
        assert (blue > 100) == (j < panels)


def test_loss_curves_reads_a_file_with_an_unfinished_last_line(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps({"step": 1, "loss": 1.0}) + '\n{"step": 2, "lo')
    curves.loss_curves(file, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_loss_curves_refuses_a_run_without_reports(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: no row has a step"):
        curves.loss_curves(file, tmp_path / "curves.png")


def rows_of_a_run(reports=60):
    """Reports with what a distillation writes: rising levels, and logits that move apart."""
    rows = []
    for i in range(1, reports + 1):
        real, fake = np.zeros(20, int), np.zeros(20, int)
        real[10 + i * 9 // reports] = 80
        fake[9 - i * 9 // reports] = 80
        rows.append(
            {
                "step": 10 * i,
                "generator_loss": 1.0 + i,
                "skipped_updates": 0,
                "generator_turns": 10 * i,
                "generated_std": 0.5,
                "real_std": 0.6,
                "logits_real_histogram": real.tolist(),
                "logits_fake_histogram": fake.tolist(),
                "dm_grad_norm_by_level": [1.0, 2.0, None, 3.0, 4.0],
            }
        )
    return rows


def test_panels_group_what_belongs_together_in_the_order_of_reading():
    rows = rows_of_a_run()
    titles = list(curves._panels(curves._curves(rows), curves._lists(rows)))
    assert titles == [
        "generator loss",
        "dm grad norm by level (0 %: least noise)",
        "logits real histogram",
        "logits fake histogram",
        "image std",
        "skipped updates",
    ]


def test_loss_curves_draws_one_curve_for_each_level_that_has_samples():
    axes = new_figure(6.4, 4.8).add_subplot()
    curves._levels(axes, *curves._lists(rows_of_a_run())["dm_grad_norm_by_level"])
    drawn = {line.get_label(): set(line.get_ydata()) for line in axes.lines}
    expected = {"0-20 %": {1.0}, "20-40 %": {2.0}, "60-80 %": {3.0}, "80-100 %": {4.0}}
    assert drawn == expected


def test_heat_map_shows_where_the_logits_are():
    axes = new_figure(6.4, 4.8).add_subplot()
    x, y = curves._lists(rows_of_a_run(3))["logits_real_histogram"]
    curves._heat_map(axes, x, y)
    (mesh,) = axes.collections
    share = np.asarray(mesh.get_array()).reshape(20, 3)
    np.testing.assert_array_equal(share.argmax(axis=0), [13, 16, 19])
    np.testing.assert_array_equal(share.max(axis=0), 1.0)
    corners = np.asarray(mesh.get_coordinates())
    np.testing.assert_array_equal(corners[0, :, 0], [0, 10, 20, 30])
    np.testing.assert_allclose(corners[:, 0, 1], np.linspace(-5, 5, 21), atol=1e-9)


def test_loss_curves_names_what_is_always_zero_instead_of_drawing_it(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))
    curves.loss_curves(rows_of_a_run(), tmp_path / "x.png")
    (figure,) = figures
    assert [text.get_text() for text in figure.texts] == ["always 0: skipped updates"]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert "skipped updates" not in titles and "generator loss" in titles


def test_loss_curves_draws_a_long_run_with_few_points(tmp_path):
    axes = new_figure(6.4, 4.8).add_subplot()
    x = np.arange(20_000.0)
    curves._single(axes, x, 3.0 * x)
    for line in axes.lines:
        assert len(line.get_xdata()) == 400
        np.testing.assert_allclose(line.get_ydata()[100:-100], 3 * line.get_xdata()[100:-100])
