"""Streamed statistics and the Fréchet distance, against closed forms."""

import numpy as np
import pytest
import scipy.linalg

from dmd2_jax.metrics.features.moments import (
    FeatureStatistics,
    feature_statistics,
    fid,
    frechet_distance,
)


def features(n, d=6, seed=0):
    random = np.random.RandomState(seed)
    return random.standard_normal((n, d)) @ random.standard_normal((d, d)) + 3.0


def rotation(d, seed):
    return np.linalg.qr(np.random.RandomState(seed).standard_normal((d, d)))[0]


def test_frechet_distance_of_shifted_gaussians_is_the_squared_shift():
    cov = np.cov(features(100).T)
    shift = np.arange(6.0)
    distance = frechet_distance(np.zeros(6), cov, shift, cov)
    np.testing.assert_allclose(distance, 55.0, rtol=1e-9)


def test_frechet_distance_of_commuting_gaussians_is_the_sum_over_axes():
    """(s1 - s2)^2 an axis, for covariances with common axes that are not the coordinates'."""
    s1, s2, q = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5]), rotation(3, 0)
    cov1, cov2 = (q * s1**2) @ q.T, (q * s2**2) @ q.T
    distance = frechet_distance(np.zeros(3), cov1, np.zeros(3), cov2)
    np.testing.assert_allclose(distance, 1.0 + 0.0 + 6.25, rtol=1e-12)


def test_frechet_distance_of_2x2_gaussians_that_do_not_commute():
    """tr of the root of a 2x2 product P is sqrt(tr P + 2 sqrt(det P))."""
    cov1, cov2 = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 4.0]])
    product = cov1 @ cov2
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = np.trace(cov1) + np.trace(cov2) - 2 * root
    distance = frechet_distance(np.zeros(2), cov1, np.zeros(2), cov2)
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


def test_frechet_distance_of_orthogonal_lines_is_the_sum_of_variances():
    """Rank one each, with no direction in common: the cross term vanishes."""
    cov1, cov2 = np.diag([4.0, 0.0, 0.0]), np.diag([0.0, 9.0, 0.0])
    np.testing.assert_allclose(frechet_distance(np.zeros(3), cov1, np.zeros(3), cov2), 13.0)


def test_frechet_distance_of_rank_deficient_covariances_in_rotated_axes():
    s1, s2, q = np.array([3.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 2.0, 0.0]), rotation(4, 1)
    cov1, cov2 = (q * s1**2) @ q.T, (q * s2**2) @ q.T
    distance = frechet_distance(np.zeros(4), cov1, np.zeros(4), cov2)
    np.testing.assert_allclose(distance, 4.0 + 1.0 + 4.0, atol=1e-6)


def spectrum(values, seed):
    """A covariance with these eigenvalues, in random axes."""
    q = rotation(len(values), seed)
    return (q * values) @ q.T


COVARIANCES = {
    "well conditioned": np.cov(features(500, 32, 1).T),
    "condition 1e8": spectrum(np.logspace(-4, 4, 32), 2),
    "condition 1e16": spectrum(np.logspace(-14, 2, 32), 3),
    "fewer samples than dimensions": np.cov(features(20, 32, 4).T),
    "constant features": np.cov(np.where(np.arange(32) < 5, 3.3, features(100, 32, 5)).T),
}


@pytest.mark.parametrize("first", sorted(COVARIANCES))
@pytest.mark.parametrize("second", ["well conditioned", "fewer samples than dimensions"])
def test_frechet_distance_equals_the_square_root_by_scipy(first, second):
    """The reference implementations' route: sqrtm of the product, which is not symmetric."""
    mu1, mu2 = np.zeros(32), np.linspace(0, 1, 32)  # 11 apart: also what is equal has a figure
    cov1, cov2 = COVARIANCES[first], COVARIANCES[second]
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    expected = np.sum((mu1 - mu2) ** 2) + np.trace(cov1 + cov2) - 2 * np.trace(root).real
    np.testing.assert_allclose(frechet_distance(mu1, cov1, mu2, cov2), expected, rtol=1e-6)


def test_frechet_distance_is_symmetric():
    a, b = (feature_statistics(features(50, seed=seed)) for seed in (0, 1))
    np.testing.assert_allclose(fid(a, b), fid(b, a), rtol=1e-9)


def test_frechet_distance_scales_with_the_square_of_the_features():
    a, b = features(50, seed=0), features(60, seed=1)
    one, ten = (fid(feature_statistics(k * a), feature_statistics(k * b)) for k in (1.0, 10.0))
    np.testing.assert_allclose(ten, 100 * one, rtol=1e-9)


def test_fid_of_a_set_with_itself_is_zero():
    statistics = feature_statistics(features(50))
    assert 0.0 <= fid(statistics, statistics) < 1e-9


def test_fid_between_samples_of_one_distribution_falls_with_their_number():
    def distance(n):
        return fid(feature_statistics(features(2 * n)[:n]), feature_statistics(features(2 * n)[n:]))

    assert distance(10_000) < 0.1 * distance(100)


def test_covariance_is_unbiased():
    statistics = feature_statistics(np.array([[1.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(statistics.mean, [2.0, 2.0])
    np.testing.assert_array_equal(statistics.covariance, [[2.0, 4.0], [4.0, 8.0]])


@pytest.mark.parametrize("sizes", [(1, 99), (40, 60), (33, 33, 34), (0, 100)])
def test_update_in_parts_equals_one_array(sizes):
    whole = features(100)
    streamed = FeatureStatistics.empty(6)
    for part in np.split(whole, np.cumsum(sizes)[:-1]):
        streamed = streamed.update(part)
    np.testing.assert_allclose(streamed.mean, whole.mean(0), rtol=1e-13)
    np.testing.assert_allclose(streamed.covariance, np.cov(whole.T), rtol=1e-12)
    assert streamed.count == 100


def test_update_keeps_digits_when_the_mean_is_large():
    """Sums of squares would lose all of them: 1e8^2 has no room for a variance of 1 in float64."""
    noise = features(200) + 1e8
    streamed = FeatureStatistics.empty(6).update(noise[:50]).update(noise[50:])
    np.testing.assert_allclose(streamed.covariance, np.cov(noise.T), rtol=1e-6)


def test_update_accumulates_float32_in_float64():
    array = features(1000).astype(np.float32)
    np.testing.assert_allclose(
        feature_statistics(array).mean, array.astype(np.float64).mean(0), rtol=1e-14
    )


def test_merge_does_not_depend_on_the_order():
    a, b = (feature_statistics(features(n, seed=n)) for n in (20, 30))
    np.testing.assert_allclose(a.merge(b).covariance, b.merge(a).covariance, rtol=1e-12)


def test_merge_with_nothing_changes_nothing():
    statistics, empty = feature_statistics(features(20)), FeatureStatistics.empty(6)
    for merged in (statistics.merge(empty), empty.merge(statistics)):
        np.testing.assert_array_equal(merged.scatter, statistics.scatter)
    assert empty.merge(empty).count == 0


def test_covariance_refuses_fewer_than_two_vectors():
    with pytest.raises(ValueError, match="count=1 feature vectors, expected at least 2"):
        _ = feature_statistics(features(1)).covariance


def test_fid_refuses_a_side_of_one_vector():
    with pytest.raises(ValueError, match="count=1"):
        fid(feature_statistics(features(50)), feature_statistics(features(1)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_update_refuses_features_that_are_not_finite(value):
    array = features(5)
    array[2, 3] = value
    with pytest.raises(ValueError, match="1 of 5 feature vectors hold NaN or infinity"):
        feature_statistics(array)


def test_update_refuses_another_dimension():
    with pytest.raises(ValueError, match=r"shape \(4, 5\), expected \[n, 6\]"):
        FeatureStatistics.empty(6).update(features(4, d=5))


def test_merge_refuses_another_dimension():
    with pytest.raises(ValueError, match="dimension=5 to be merged, expected 6"):
        feature_statistics(features(9)).merge(feature_statistics(features(9, d=5)))


def test_feature_statistics_refuse_feature_maps():
    with pytest.raises(ValueError, match=r"expected \[n, d\]"):
        feature_statistics(np.zeros((4, 2, 2, 3)))


def test_frechet_distance_refuses_another_dimension():
    with pytest.raises(ValueError, match=r"cov2 has shape \(2, 2\), expected \(3, 3\)"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), np.eye(2))


def test_frechet_distance_refuses_nan():
    with pytest.raises(ValueError, match="mu2 holds NaN"):
        frechet_distance(np.zeros(2), np.eye(2), np.array([0.0, np.nan]), np.eye(2))


def test_fid_warns_when_the_covariance_lacks_rank():
    with pytest.warns(UserWarning, match="6 feature vectors of dimension 6"):
        fid(feature_statistics(features(50)), feature_statistics(features(6)))
