"""The Fréchet distance against values recorded from the original code.

The statistic sets and their pairs are found from the array names, so another recording of the
same format passes unchanged.
"""

import numpy as np
import pytest

from dmd2_jax.metrics.features.moments import feature_statistics, frechet_distance


@pytest.fixture(scope="module")
def recorded(golden):
    with np.load(golden / "fid" / "fid.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_frechet_distance_equals_recorded_values(recorded):
    pairs = [name for name in recorded if name.startswith("fid_") and "_eigh_" not in name]
    assert pairs, "fid.npz has no arrays named fid_A_vs_B"
    for name in pairs:
        first, second = name.removeprefix("fid_").split("_vs_")
        distance = frechet_distance(
            recorded[f"mu_{first}"],
            recorded[f"sigma_{first}"],
            recorded[f"mu_{second}"],
            recorded[f"sigma_{second}"],
        )
        # Of two identical sets only rounding is left, which scales with the variance.
        rounding = 1e-9 * np.trace(recorded[f"sigma_{second}"])
        tolerance = {"atol": rounding, "rtol": 0} if first == second else {"rtol": 1e-6}
        np.testing.assert_allclose(distance, recorded[name], err_msg=name, **tolerance)


def test_feature_statistics_equal_recorded_mean_and_covariance(recorded):
    sets = [name.removeprefix("features_") for name in recorded if name.startswith("features_")]
    assert sets, "fid.npz has no arrays named features_A"
    for name in sets:
        statistics = feature_statistics(recorded[f"features_{name}"])
        np.testing.assert_allclose(statistics.mean, recorded[f"mu_{name}"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            statistics.covariance, recorded[f"sigma_{name}"], rtol=0, atol=1e-12
        )
