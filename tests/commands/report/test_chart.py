"""Charts: where points lie, and what is said of them in words."""

import re

import numpy as np
import pytest

from dmd2_jax.commands.report.chart import Line, line_chart, ticks
from tests.commands.report.folders import Page


def drawn(*lines: tuple[list[float], list[float]], **options: bool) -> Page:
    """Return the chart of these lines."""
    made = [
        Line(f"n{i}", i, (np.array(x, float), np.array(y, float))) for i, (x, y) in enumerate(lines)
    ]
    return Page(line_chart(made, title="loss", x_label="cycle", **options))


def points(attributes: dict[str, str]) -> np.ndarray:
    """Return the corners [n, 2] of a line."""
    return np.array([pair.split(",") for pair in attributes["points"].split()], float)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (0.03, 0.21, [0.05, 0.1, 0.15, 0.2]),
        (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (99_990.0, 100_010.0, [99_990, 99_995, 100_000, 100_005, 100_010]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    np.testing.assert_allclose(ticks(low, high), expected, atol=1e-12)


def test_ticks_of_a_logarithmic_axis_are_powers_of_ten() -> None:
    np.testing.assert_allclose(ticks(0.02, 300.0, True), [0.1, 1, 10, 100])
    np.testing.assert_allclose(ticks(0.9e-6, 1.1e6, True), [1e-6, 1e-3, 1, 1e3, 1e6])


def test_line_chart_puts_equal_steps_at_equal_distances() -> None:
    (line,) = drawn(([0, 1, 2], [0.0, 1.0, 2.0])).all("polyline")
    np.testing.assert_allclose(np.diff(points(line), n=2, axis=0), 0, atol=0.11)
    assert (np.diff(points(line)[:, 1]) < 0).all()  # y goes down the picture


def test_line_chart_is_logarithmic_where_values_span_a_hundred() -> None:
    page = drawn(([0, 1, 2], [1.0, 10.0, 100.0]))
    np.testing.assert_allclose(np.diff(points(page.all("polyline")[0]), n=2, axis=0), 0, atol=0.11)
    assert "logarithmic" in page.text
    assert "logarithmic" not in drawn(([0, 1], [1.0, 99.0])).text
    assert "logarithmic" not in drawn(([0, 1], [0.0, 1e4])).text


@pytest.mark.parametrize("y", [[5.0, 5.0], [0.0, 0.0], [1e-90, 1e90], [-1e99, 1e99], [3.0]])
def test_line_chart_stays_within_the_picture(y: list[float]) -> None:
    page = drawn((list(range(len(y))), y))
    places = [points(line) for line in page.all("polyline")]
    places += [np.array([[dot["cx"], dot["cy"]]], float) for dot in page.all("circle")]
    (found,) = places
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (found <= [380, 210]).all()


def test_line_chart_draws_the_median_over_many_points() -> None:
    y = np.where(np.arange(100) % 10 == 0, 50.0, 1.0)  # a spike in ten
    noisy, smooth = drawn((list(range(100)), list(y))).all("polyline")
    assert "faint" in noisy["class"]
    assert np.ptp(points(noisy)[:, 1]) > 100
    assert np.ptp(points(smooth)[:, 1]) == 0


def test_line_chart_draws_a_long_run_with_few_points() -> None:
    page = drawn((list(range(50_000)), list(np.sin(np.arange(50_000)))))
    assert all(len(points(line)) <= 400 for line in page.all("polyline"))


def test_line_chart_says_in_words_what_it_shows() -> None:
    (chart,) = (svg for svg in drawn(([10, 20], [3.0, 1.0]), named=False).all("svg"))
    assert chart["aria-label"] == "loss over cycles 10 to 20. n0: from 3 to 1, least 1, most 3."


def test_line_chart_names_its_lines_only_where_asked() -> None:
    lines = ([0, 1], [3.0, 1.0]), ([0, 1], [2.0, 4.0])
    assert re.sub(r"\s+", " ", drawn(*lines).text).endswith("last: n0 1 n1 4")
    assert "n0" not in drawn(*lines, named=False).text
