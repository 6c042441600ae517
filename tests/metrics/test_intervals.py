"""Intervals: their values, how often they cover, and which figures have none."""

import dataclasses

import numpy as np
import pytest

from dmd2_jax import metrics
from dmd2_jax.commands.report.metric_section import interval
from dmd2_jax.metrics import all_figures
from dmd2_jax.metrics.contract.figures import wilson
from dmd2_jax.metrics.features.blocks import Dealer
from dmd2_jax.metrics.features.extractor import FeatureSet
from dmd2_jax.metrics.features.moments import feature_statistics


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


def gaussian(random: np.random.RandomState, count: int, shift: float, width: float) -> FeatureSet:
    """Return samples with all that a metric may take."""
    features = random.standard_normal((count, 4)) * width + shift
    dealt = Dealer()(count)
    blocks = tuple(feature_statistics(features[dealt == block]) for block in range(10))
    made = FeatureSet("test/none", feature_statistics(features), features)
    return dataclasses.replace(made, blocks=blocks)


@pytest.mark.parametrize(
    ("metric", "key", "options"),
    [
        ("fid", "fid", {}),
        ("kid", "kid", {"subset_size": 50, "subsets": 20}),
        ("density_coverage", "density", {}),
        ("density_coverage", "coverage", {}),
    ],
)
def test_interval_of_evaluations_covers_their_mean_in_95_of_100(
    metric: str, key: str, options: dict[str, int]
) -> None:
    """Of Gaussians shifted and widened, against one set of real samples."""
    random = np.random.RandomState(0)
    real, found = gaussian(random, 200, 0.0, 1.0), []
    for seed in range(200):
        fake = gaussian(random, 120, 0.5, 1.2)
        more = options | ({"seed": seed} if metric == "kid" else {})
        figures = metrics.compute([metric], real, fake, {metric: more})
        low, high = interval(figures | {"num_samples": 120}, key)
        found.append((figures[key], low, high))
    values, low, high = np.array(found).T
    inside = (low <= values.mean()) & (values.mean() <= high)
    # Three deviations of 200 draws below; above, what the jackknife's caution may add.
    assert 0.90 <= inside.mean() <= 0.995
    assert (high - low).mean() < 8 * values.std()  # twice what a normal distribution needs


def test_interval_of_fid_is_students_and_not_below_0() -> None:
    figures = {"fid": 2.0, "fid_std": 0.1, "num_samples": 100}
    np.testing.assert_allclose(interval(figures, "fid"), (2 - 0.2262157, 2 + 0.2262157))
    assert interval(figures | {"fid_std": 2.0}, "fid").low == 0.0
    assert interval({"fid": 2.0, "num_samples": 100}, "fid") is None  # of an older release


@pytest.mark.parametrize("key", ["recall", "diversity"])
def test_interval_is_none_where_none_is_honest(key: str) -> None:
    assert interval({key: 0.5, f"{key}_std": 0.1, "num_samples": 100}, key) is None


def test_deviation_of_a_kid_s_subset_makes_no_interval() -> None:
    assert interval({"kid": 0.5, "kid_std": 0.1, "num_samples": 100}, "kid") is None


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
    declared = all_figures()
    figures = {"num_samples": 50} | {f"{key}_std": 0.1 for key in declared}
    figures |= {"kid_standard_error": 0.1}
    made = {key for key in declared if interval(figures | {key: 0.5}, key)}
    assert made == {key for key, figure in declared.items() if figure.method}
    none = {"recall", "diversity", "diversity_real", "fd_ratio", "fd_ratio_mean", "seed_diversity"}
    assert set(declared) - made == none
