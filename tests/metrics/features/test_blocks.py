"""Samples dealt into blocks, and the jackknife over them."""

import numpy as np
import pytest

from dmd2_jax.metrics.features.blocks import Dealer, jackknife_std, left_out
from dmd2_jax.metrics.features.moments import feature_statistics


def test_dealer_does_not_depend_on_the_batches():
    whole, deal = Dealer(10)(95), Dealer(10)
    parts = [deal(count) for count in (3, 0, 40, 1, 51)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_dealer_gives_each_block_one_of_every_ten_in_a_row():
    dealt = Dealer(10)(200).reshape(20, 10)
    np.testing.assert_array_equal(np.sort(dealt, axis=1), np.tile(np.arange(10), (20, 1)))


def test_dealer_mixes_classes_that_come_in_turn():
    """Ten classes one after the other: by turns, each block would be of one class."""
    dealt = Dealer(10)(1000)
    table = np.zeros((10, 10))
    np.add.at(table, (dealt, np.arange(1000) % 10), 1)
    assert table.max() < 30  # ten expected, a hundred by turns


def test_left_out_are_the_statistics_of_the_rest():
    vectors = np.random.RandomState(0).standard_normal((50, 4)) + 1e4
    dealt = Dealer(5)(50)
    blocks = [feature_statistics(vectors[dealt == block]) for block in range(5)]
    for block, got in enumerate(left_out(blocks)):
        rest = vectors[dealt != block]
        assert got.count == len(rest)
        np.testing.assert_allclose(got.mean, rest.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(got.covariance, np.cov(rest.T), rtol=1e-6, atol=1e-8)


def test_without_refuses_all_vectors_and_other_dimensions():
    whole = feature_statistics(np.eye(4))
    with pytest.raises(ValueError, match="a part of 4 vectors .* out of 4 .*expected fewer"):
        whole.without(whole)
    with pytest.raises(ValueError, match="of dimension 3 out of 4 of dimension 4"):
        whole.without(feature_statistics(np.ones((2, 3))))


def test_jackknife_std_of_a_mean_is_its_standard_error():
    """Of ten blocks' means: their deviation (n - 1) over the root of ten."""
    samples = np.random.RandomState(0).standard_normal((10, 7))
    means = [np.delete(samples, block, axis=0).mean() for block in range(10)]
    expected = samples.mean(axis=1).std(ddof=1) / np.sqrt(10)
    assert jackknife_std(means) == pytest.approx(expected, rel=1e-12)
