"""Averages and histograms, and their sums over the steps between reports."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.runtime.summaries import (
    Average,
    Histogram,
    Window,
    average_by_bin,
    histogram,
    histogram_edges,
    sum_leading,
)


def test_average_by_bin_by_hand() -> None:
    total, number = average_by_bin(jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([0, 2, 2, 0]), 4)
    np.testing.assert_array_equal(total, [9.0, 0.0, 6.0, 0.0])
    np.testing.assert_array_equal(number, [2, 0, 2, 0])


def test_average_by_bin_keeps_nan_in_its_bin() -> None:
    total, _ = average_by_bin(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([0, 1, 2]), 3)
    np.testing.assert_array_equal(total, [1.0, np.nan, 3.0])


def test_histogram_equals_numpy_within_the_limits() -> None:
    values = 2.0 * jax.random.normal(jax.random.key(0), (500,))
    values = jnp.clip(values, -4.99, 4.99)
    expected, edges = np.histogram(np.asarray(values), bins=20, range=(-5.0, 5.0))
    np.testing.assert_array_equal(histogram(values).counts, expected)
    np.testing.assert_allclose(histogram_edges(), edges, atol=1e-12)


def test_histogram_counts_what_lies_beyond_its_limits_and_no_nan() -> None:
    values = jnp.array([-jnp.inf, -30.0, -5.0, -4.5, 4.5, 5.0, 500.0, jnp.inf, jnp.nan])
    expected = np.zeros(20, int)
    expected[[0, 1, 19]] = 3, 1, 4
    np.testing.assert_array_equal(histogram(values).counts, expected)


def test_sum_leading_leaves_other_metrics_alone() -> None:
    metrics = {
        "loss": jnp.array([1.0, 2.0]),
        "by_bin": Average(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1, 0], [1, 1]])),
        "histogram": Histogram(jnp.array([[1, 0], [2, 5]])),
    }
    summed = sum_leading(metrics)
    np.testing.assert_array_equal(summed["loss"], [1.0, 2.0])
    np.testing.assert_array_equal(summed["by_bin"].total, [4.0, 6.0])
    np.testing.assert_array_equal(summed["by_bin"].number, [2, 1])
    np.testing.assert_array_equal(summed["histogram"].counts, [3, 5])


def metrics_of(step: int) -> dict:
    return {
        "loss": jnp.float32(step),
        "by_bin": Average(jnp.array([0.1 * step, 0.0]), jnp.array([1, 0])),
        "share": Average(jnp.float32(step), jnp.int32(4)),
        "histogram": Histogram(jnp.array([step, 1])),
    }


def test_window_sums_averages_and_histograms_and_takes_the_last_of_the_rest() -> None:
    window = Window()
    for step in (1, 2, 3):
        window.add(metrics_of(step))
    report = window.report(metrics_of(3))
    assert report["loss"] == 3.0
    np.testing.assert_allclose(report["by_bin"].total, [0.6, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(report["by_bin"].number, [3, 0])
    assert (float(report["share"].total), int(report["share"].number)) == (6.0, 12)
    np.testing.assert_array_equal(report["histogram"].counts, [6, 3])


def test_window_begins_again_when_cleared() -> None:
    window = Window()
    window.add(metrics_of(1))
    window.clear()
    window.add(metrics_of(2))
    np.testing.assert_array_equal(window.report({})["histogram"].counts, [2, 1])


def test_window_saved_and_read_back_goes_on_bit_for_bit() -> None:
    whole, first = Window(), Window()
    for step in (1, 2):
        whole.add(metrics_of(step))
        first.add(metrics_of(step))
    second = Window(json.loads(json.dumps(first.to_json(), allow_nan=False)))
    for window in (whole, second):
        window.add(metrics_of(3))
    expected, got = whole.report({}), second.report({})
    assert expected.keys() == got.keys() == {"by_bin", "share", "histogram"}
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_window_saves_what_is_not_finite() -> None:
    window = Window()
    window.add({"a": Average(jnp.array([jnp.nan, 1.0]), jnp.array([1, 1]))})
    again = Window(json.loads(json.dumps(window.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(again.report({})["a"].total, [np.nan, 1.0])
