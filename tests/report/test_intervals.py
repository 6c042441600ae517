"""Intervals: their values, how often they cover, and which figures have none."""

import numpy as np
import pytest

from dmd2_jax.report.intervals import METHODS, interval, wilson


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81 of 263, 15 of 148,
        # 0 of 20, 1 of 29.
        (81 / 263, 263, (0.2553, 0.3662)),
        (15 / 148, 148, (0.0624, 0.1605)),
        (0.0, 20, (0.0, 0.1611)),
        (1 / 29, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_is_the_published_one(
    share: float, count: int, expected: tuple[float, float]
) -> None:
    np.testing.assert_allclose(wilson(share, count), expected, atol=5e-5)


def test_interval_of_a_share_covers_it_in_95_of_100_draws() -> None:
    hits = np.random.RandomState(0).binomial(500, 0.8, 4000)
    inside = [
        low <= 0.8 <= high
        for low, high in (
            interval({"class_accuracy": hit / 500, "num_samples": 500}, "class_accuracy")
            for hit in hits
        )
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


def test_interval_of_the_inception_score_covers_its_mean_in_95_of_100_draws() -> None:
    parts = np.random.RandomState(0).normal(7.0, 0.3, (4000, 10))
    inside = []
    for scores in parts:
        figures = {"inception_score": scores.mean(), "inception_score_std": scores.std()}
        low, high = interval(figures | {"num_samples": 1000}, "inception_score")
        inside.append(low <= 7.0 <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


def test_interval_of_the_clip_score_covers_its_mean_in_95_of_100_draws() -> None:
    images = np.random.RandomState(0).normal(30.0, 4.0, (4000, 100))
    inside = []
    for scores in images:
        figures = {"clip_score": scores.mean(), "clip_score_std": scores.std(ddof=1)}
        low, high = interval(figures | {"num_samples": 100}, "clip_score")
        inside.append(low <= 30.0 <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


def test_clip_score_of_one_image_has_no_interval() -> None:
    figures = {"clip_score": 30.0, "clip_score_std": 0.0, "num_samples": 1}
    assert interval(figures, "clip_score") is None


@pytest.mark.parametrize("key", ["fid", "kid", "recall", "coverage", "density"])
def test_interval_is_none_where_none_is_honest(key: str) -> None:
    assert interval({key: 0.5, f"{key}_std": 0.1, "num_samples": 100}, key) is None


@pytest.mark.parametrize(
    "figures",
    [
        {"class_accuracy": 0.5},
        {"class_accuracy": 1.5, "num_samples": 10},
        {"class_accuracy": "0.5", "num_samples": 10},
        {"class_accuracy": 0.5, "num_samples": 0},
    ],
)
def test_interval_is_none_of_figures_that_cannot_be(figures: dict[str, object]) -> None:
    assert interval(figures, "class_accuracy") is None


def test_every_interval_says_how_it_is_computed() -> None:
    figures = {"num_samples": 50, "inception_score_std": 0.1, "clip_score_std": 0.1}
    keys = (*METHODS, "recall", "fid", "kid")
    assert {key for key in keys if interval(figures | {key: 0.5}, key)} == set(METHODS)
