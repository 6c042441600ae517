"""Reference statistics in EDM's format: there and back, and what is refused."""

import logging
import pickle
import tracemalloc
import zipfile
from typing import NamedTuple

import numpy as np
import pytest

from dmd2_jax import metrics
from dmd2_jax.metrics.features.extractor import Extractor, FeatureSet
from dmd2_jax.metrics.features.moments import feature_statistics, fid
from dmd2_jax.metrics.features.reference import read_reference, read_statistics, write_statistics

NAME = "inception_v3/edm"


def statistics(d=4):
    return feature_statistics(np.random.RandomState(0).standard_normal((50, d)))


class Images(NamedTuple):
    """What a reference looks at of a set of images."""

    name: str = "samples"
    resolution: int = 32
    channels: int = 3


def write_edm(path, d=4, **changes):
    given = statistics(d)
    np.savez(path, **({"mu": given.mean, "sigma": given.covariance} | changes))
    return path


def test_statistics_come_back_as_they_were_written(tmp_path):
    write_statistics(statistics(), NAME, tmp_path / "ref.npz")
    got = read_statistics(tmp_path / "ref.npz", NAME, 4)
    np.testing.assert_array_equal(got.mean, statistics().mean)
    np.testing.assert_array_equal(got.covariance, statistics().covariance)
    assert (got.count, got.extractor, got.dimension) == (50, NAME, 4)


def test_written_statistics_are_edm_s_format(tmp_path):
    """What EDM's program does with a file: np.load and the two keys; nothing is pickled."""
    write_statistics(statistics(), NAME, tmp_path / "ref.npz")
    with np.load(tmp_path / "ref.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["mu"], statistics().mean)
        np.testing.assert_array_equal(archive["sigma"], statistics().covariance)
        assert str(archive["extractor"]) == NAME


def test_fid_against_a_file_equals_fid_against_the_features(tmp_path):
    other = feature_statistics(np.random.RandomState(1).standard_normal((50, 4)))
    got = read_statistics(write_edm(tmp_path / "edm.npz"), NAME, 4)
    assert got.count is None
    assert fid(got, other) == fid(statistics(), other)


def test_metrics_take_a_file_for_the_real_side(tmp_path):
    network = Extractor(NAME, 4, lambda params, images: (images, None), {})
    fake = FeatureSet(NAME, feature_statistics(np.random.RandomState(1).standard_normal((50, 4))))
    real = read_reference(write_edm(tmp_path / "edm.npz"), network)
    got = metrics.compute(["fid"], real, fake)
    assert got == metrics.compute(["fid"], FeatureSet(NAME, statistics()), fake)
    assert metrics.compute(["fid"], fake, real) == {"fid": pytest.approx(got["fid"], rel=1e-9)}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Images(resolution=64), "resolution 64, expected 32"),
        (Images(channels=1), "channels 1, expected 3"),
    ],
)
def test_read_reference_refuses_samples_of_another_size_or_colour(tmp_path, other, words):
    network = Extractor(NAME, 4, lambda params, images: (images, None), {})
    write_statistics(statistics(), NAME, tmp_path / "ref.npz", Images("real"))
    read_reference(tmp_path / "ref.npz", network, [Images(), Images()])
    with pytest.raises(ValueError, match=rf"samples has images of {words} .*ref\.npz'"):
        read_reference(tmp_path / "ref.npz", network, [Images(), other])
    # EDM's own file says nothing of sizes, and is taken.
    read_reference(write_edm(tmp_path / "edm.npz"), network, [other])


def test_read_statistics_refuses_another_extractor(tmp_path):
    write_statistics(statistics(), "inception_v3/clean_fid", tmp_path / "ref.npz")
    with pytest.raises(
        ValueError, match=r"ref\.npz' was made by .*'inception_v3/clean_fid', expec"
    ):
        read_statistics(tmp_path / "ref.npz", NAME, 4)


def test_read_statistics_refuses_another_dimension(tmp_path):
    path = write_edm(tmp_path / "edm.npz")
    with pytest.raises(ValueError, match=r"edm\.npz' has mu \(4,\) and sigma \(4, 4\), expected"):
        read_statistics(path, NAME, 2048)


def test_read_statistics_warns_of_a_file_that_says_no_extractor(tmp_path, caplog):
    path = write_edm(tmp_path / "edm.npz")
    with caplog.at_level(logging.WARNING):
        read_statistics(path, NAME, 4)
        assert not caplog.records
        read_statistics(path, "inception_v3/pytorch_fid", 4)
    assert "does not say which extractor" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"mu": np.full(4, np.nan)},
        {"sigma": np.full((4, 4), np.inf)},
        {"sigma": np.arange(16.0).reshape(4, 4)},
    ],
    ids=["NaN", "infinity", "asymmetric"],
)
def test_read_statistics_refuses_what_is_no_covariance(tmp_path, changes):
    path = write_edm(tmp_path / "edm.npz", **changes)
    with pytest.raises(ValueError, match=r"edm\.npz' holds NaN, infinity or a sigma that is not s"):
        read_statistics(path, NAME, 4)


def test_read_statistics_refuses_negative_variances(tmp_path):
    for sigma in (-np.eye(4), np.diag([1.0, 1.0, 1.0, -1e-3])):
        with pytest.raises(ValueError, match=r"edm\.npz' holds a sigma with the negative variance"):
            read_statistics(write_edm(tmp_path / "edm.npz", sigma=sigma), NAME, 4)
    rounded = np.diag([1.0, 1.0, 1.0, -1e-9])  # as sums leave it where features do not vary
    assert read_statistics(write_edm(tmp_path / "edm.npz", sigma=rounded), NAME, 4).dimension == 4


def test_read_statistics_looks_at_shapes_before_it_reads_numbers(tmp_path):
    sigma = np.broadcast_to(np.float32(0), (6000, 6000))
    np.savez_compressed(tmp_path / "big.npz", mu=np.zeros(6000), sigma=sigma)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"sigma \(6000, 6000\), expected \[4\]"):
        read_statistics(tmp_path / "big.npz", NAME, 4)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_read_statistics_never_unpickles(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harmed"), "w"))

    np.savez(tmp_path / "bad.npz", mu=np.array([Harm()], object), sigma=np.eye(1))
    with pytest.raises(ValueError, match=r"bad\.npz' cannot be read .*allow_pickle"):
        read_statistics(tmp_path / "bad.npz", NAME, 1)
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match=r"plain\.npz' cannot be read"):
        read_statistics(tmp_path / "plain.npz", NAME, 1)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"extractor": np.arange(3)}, "an entry extractor of another kind"),
        ({"count": np.array("many")}, "an entry count of another kind"),
        ({"resolution": np.array([32, 32])}, "an entry resolution of another kind"),
        ({"mu": np.array(["a"] * 4)}, "mu of type"),
    ],
)
def test_read_statistics_refuses_entries_of_another_kind(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        read_statistics(write_edm(tmp_path / "edm.npz", **changes), NAME, 4)


def test_read_statistics_names_missing_entries(tmp_path):
    np.savez(tmp_path / "other.npz", mu=np.zeros(4))
    with pytest.raises(ValueError, match=r"other\.npz' cannot be read \(no sigma among"):
        read_statistics(tmp_path / "other.npz", NAME, 4)


def test_read_statistics_refuses_truncated_files(tmp_path):
    content = write_edm(tmp_path / "edm.npz").read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.npz").write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"cut\.npz' cannot be read"):
            read_statistics(tmp_path / "cut.npz", NAME, 4)


def test_read_statistics_refuses_an_entry_that_inflates_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("dmd2_jax.metrics.features.reference._MOST_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mu.npy", bytes(20_000))
    with pytest.raises(ValueError, match="an entry of 20,000 bytes"):
        read_statistics(tmp_path / "bomb.npz", NAME, 4)


def test_read_statistics_takes_no_notice_of_images_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr("dmd2_jax.metrics.features.reference._MOST_BYTES", 10_000)
    path = write_edm(tmp_path / "adm.npz", arr_0=np.zeros((9, 64, 64, 3), np.uint8))
    assert read_statistics(path, "inception_v3/edm", 4).dimension == 4


def test_read_statistics_names_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.npz' cannot be read"):
        read_statistics(tmp_path / "nowhere.npz", NAME, 4)


def test_write_statistics_refuses_another_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"expected a name ending in \.npz"):
        write_statistics(statistics(), NAME, tmp_path / "ref.pkl")
