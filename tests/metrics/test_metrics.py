"""Every metric against its plain twin, on random and degenerate features; the registry."""

import dataclasses
import re
import warnings

import numpy as np
import pytest
import scipy.linalg

from dmd2_jax import metrics
from dmd2_jax.metrics.features import neighbours
from dmd2_jax.metrics.features.blocks import Dealer
from dmd2_jax.metrics.features.moments import feature_statistics, fid_bias
from dmd2_jax.metrics.kid import squared_discrepancy
from tests.metrics import plain
from tests.metrics.samples import PAIRS, feature_set

random_pairs = pytest.mark.parametrize("pair", sorted(PAIRS))


def compute(name, real, fake, **options):
    return metrics.compute([name], feature_set(real), feature_set(fake), {name: options})


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that divide none of the sets, so that every border is crossed."""
    monkeypatch.setattr(neighbours, "_ROWS", 17)
    monkeypatch.setattr(neighbours, "_COLUMNS", 11)
    monkeypatch.setattr("dmd2_jax.metrics.kid._BLOCK", 13)


@random_pairs
def test_precision_recall_equals_its_plain_twin(pair, small_blocks):
    real, fake = PAIRS[pair]
    assert compute("precision_recall", real, fake, k=3) == plain.precision_recall(real, fake, 3)


@random_pairs
def test_density_coverage_equals_its_plain_twin(pair, small_blocks):
    real, fake = PAIRS[pair]
    got = compute("density_coverage", real, fake, k=5)
    expected = plain.density_coverage(real, fake, 5)
    assert {key: got[key] for key in expected} == pytest.approx(expected, rel=1e-12)


@random_pairs
def test_kid_equals_its_plain_twin(pair, small_blocks):
    real, fake = PAIRS[pair]
    expected = plain.kid(real, fake)
    size = max(abs(plain.kernel(real[0], real[0])), 1.0)
    assert squared_discrepancy(real, fake) == pytest.approx(expected, rel=1e-9, abs=1e-11 * size)


def test_blocks_do_not_change_the_figures():
    """One block of everything, as at these sizes without the fixture above."""
    real, fake = PAIRS["random"]
    got = compute("precision_recall", real, fake, k=3)
    assert got == plain.precision_recall(real, fake, 3)


def test_precision_of_a_missing_class_is_high_and_recall_is_low():
    """Two of three clusters: what is made is real; a third of what is real is not made."""
    real, fake = PAIRS["one class missing"]
    got = compute("precision_recall", real, fake)
    assert got["precision"] > 0.8
    assert got["recall"] <= 2 / 3


def test_coverage_of_a_copy_is_whole():
    real, fake = PAIRS["a copy"]
    assert compute("density_coverage", real, fake)["coverage"] == 1.0


def test_nearest_neighbours_refuse_too_few_samples():
    real, fake = PAIRS["random"]
    with pytest.raises(ValueError, match="k=3 nearest neighbours among 3 vectors"):
        compute("precision_recall", real, fake[:3], k=3)


def test_kid_of_whole_sets_is_the_estimate_of_all_samples():
    real, fake = PAIRS["random"]
    got = compute("kid", real[:45], fake, subsets=2)
    assert got["kid"] == pytest.approx(squared_discrepancy(real[:45], fake), rel=1e-12)
    assert got["kid_std"] == pytest.approx(0.0, abs=1e-12)


def test_kid_is_unbiased():
    """Of two sets of one distribution: zero within three standard errors."""
    random = np.random.RandomState(0)
    values = [squared_discrepancy(*random.standard_normal((2, 20, 5))) for _ in range(2000)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(2000)


def test_kid_depends_on_its_seed_alone():
    real, fake = PAIRS["random"]
    first, again, other = (
        compute("kid", real, fake, subset_size=20, subsets=5, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_kid_refuses_one_sample():
    real, fake = PAIRS["random"]
    with pytest.raises(ValueError, match="of 60 real and 1 generated samples"):
        compute("kid", real, fake[:1])


def score(logits, **options):
    fake = feature_set(np.zeros((len(logits), 2)), logits=np.asarray(logits, np.float32))
    return metrics.compute(["inception_score"], None, fake, {"inception_score": options})


def test_inception_score_equals_its_plain_twin():
    logits = np.random.RandomState(0).standard_normal((40, 6)).astype(np.float32)
    got = score(logits, splits=1)
    assert got["inception_score"] == pytest.approx(plain.inception_score(logits), rel=1e-9)


def test_inception_score_of_sure_and_varied_samples_is_the_number_of_classes():
    got = score(1000 * np.tile(np.eye(5), (4, 1)), splits=1)
    assert got == pytest.approx({"inception_score": 5.0, "inception_score_std": 0.0}, rel=1e-9)


def test_inception_score_of_one_class_is_one():
    assert score(1000 * np.tile(np.eye(5)[:1], (20, 1)))["inception_score"] == pytest.approx(1.0)


def test_inception_score_of_sorted_samples_mixes_the_classes_in_every_split():
    """Ten samples of each of ten classes, in order: unmixed splits would all score 1."""
    logits = np.repeat(1000 * np.eye(10), 50, axis=0)
    assert score(logits, splits=10)["inception_score"] > 8


def test_inception_score_refuses_fewer_samples_than_splits():
    with pytest.raises(ValueError, match="splits=10 of 4 samples"):
        score(np.eye(4))


def diversity(features, labels, **options):
    fake = feature_set(features, labels=np.asarray(labels))
    return metrics.compute(["diversity"], None, fake, {"diversity": options})["diversity"]


@pytest.mark.parametrize("pair", ["random", "duplicates", "constant", "far from zero"])
def test_diversity_equals_its_plain_twin(pair):
    features = PAIRS[pair][0]
    labels = np.arange(len(features)) % 4
    expected = plain.diversity(features, labels)
    assert diversity(features, labels) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_diversity_leaves_out_labels_that_occur_once():
    features = np.array([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]])
    assert diversity(features, [1, 1, 2]) == pytest.approx(5.0)


def test_diversity_of_chosen_samples_is_near_that_of_all():
    features, labels = np.random.RandomState(0).standard_normal((400, 3)), np.zeros(400, int)
    some, everything = (diversity(features, labels, per_label=n) for n in (100, 400))
    assert some != everything
    assert some == pytest.approx(everything, rel=0.1)


def test_diversity_refuses_labels_that_all_differ():
    with pytest.raises(ValueError, match="some label at least twice"):
        diversity(np.zeros((3, 2)), [0, 1, 2])


def test_seed_diversity_is_the_share_of_the_real_distance_within_a_class():
    random = np.random.RandomState(0)
    x, labels = random.standard_normal((30, 3)).astype(np.float32), np.repeat([0, 1, 5], 10)
    centre = np.stack([x[labels == label].mean(axis=0) for label in labels])
    # A third of the spread in every class but one, of which there is a single image.
    y = centre + np.float32(1 / 3) * (x - centre)
    y[labels == 5] = 7.0
    real = dataclasses.replace(feature_set(x), labels=labels)
    fake = dataclasses.replace(feature_set(y), labels=labels)
    got = metrics.compute(["seed_diversity"], real, fake)
    ratio = plain.diversity(y, labels) / plain.diversity(x, labels)
    assert got == pytest.approx({"seed_diversity": ratio, "seed_diversity_least": 0.0}, rel=1e-5)
    assert 0.2 < ratio < 0.24


@pytest.mark.parametrize(
    ("labels", "said"),
    [([0, 1, 2, 3], "some label at least twice"), ([8, 8, 9, 9], "labels such as 8")],
)
def test_seed_diversity_refuses_samples_of_no_class_of_the_data(labels, said):
    real = dataclasses.replace(feature_set(np.eye(4)), labels=np.array([0, 0, 1, 1]))
    fake = dataclasses.replace(feature_set(np.eye(4)), labels=np.array(labels))
    with pytest.raises(ValueError, match=said):
        metrics.compute(["seed_diversity"], real, fake)
    flat = dataclasses.replace(feature_set(np.ones((4, 4))), labels=np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="class 0 all have the same features"):
        metrics.compute(["seed_diversity"], flat, real)


def test_diversity_reports_the_real_one_beside_it():
    real = feature_set([[0.0, 0.0], [0.0, 2.0]], labels=np.array([5, 5]))
    fake = feature_set([[0.0, 0.0], [0.0, 1.0]], labels=np.array([5, 5]))
    assert metrics.compute(["diversity"], real, fake) == {"diversity": 1.0, "diversity_real": 2.0}


@pytest.mark.parametrize("count", [200, 1000])
def test_fid_bias_is_the_mean_distance_of_samples_of_the_reference(count):
    """Monte Carlo: 40 sets of samples of a Gaussian with variances 1 .. 8."""
    random, deviations = np.random.RandomState(0), np.sqrt(np.arange(1.0, 9.0))
    reference = feature_statistics(deviations * random.standard_normal((400_000, 8)))
    distances = [
        compute_fid(reference, deviations * random.standard_normal((count, 8))) for _ in range(40)
    ]
    error = np.std(distances) / np.sqrt(40)
    assert fid_bias(reference, count) == pytest.approx(np.mean(distances), abs=4 * error)


def compute_fid(reference, features):
    real = feature_set(np.zeros((2, 8)))
    real = real.__class__(real.extractor, reference)
    return metrics.compute(["fid"], real, feature_set(features))["fid"]


def test_fid_of_many_samples_warns_of_nothing():
    real, fake = PAIRS["random"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = compute("fid", real, fake)
    assert got["fid"] > got["fid_bias"] > 0


def jackknife(figures):
    """Its formula, written out."""
    m, mean = len(figures), sum(figures) / len(figures)
    return ((m - 1) / m * sum((figure - mean) ** 2 for figure in figures)) ** 0.5


def blocks_of(features):
    dealt = Dealer()(len(features))
    return tuple(feature_statistics(features[dealt == block]) for block in range(10))


def test_fid_std_equals_the_jackknife_by_brute_force():
    """Each time from the vectors anew, the root by scipy."""
    real, fake = (np.asarray(side, np.float64) for side in PAIRS["random"])
    dealt, distances = Dealer()(len(fake)), []
    for block in range(10):
        rest = fake[dealt != block]
        cov1, cov2 = np.cov(real.T), np.cov(rest.T)
        root = np.trace(scipy.linalg.sqrtm(cov1 @ cov2)).real
        shift = np.sum((real.mean(axis=0) - rest.mean(axis=0)) ** 2)
        distances.append(shift + np.trace(cov1 + cov2) - 2 * root)
    side = dataclasses.replace(feature_set(fake), blocks=blocks_of(fake))
    got = metrics.compute(["fid"], feature_set(real), side)
    assert got["fid_std"] == pytest.approx(jackknife(distances), rel=1e-6)


def test_fid_of_blocks_of_one_sample_has_no_deviation():
    real, fake = PAIRS["random"]
    for count, there in ((19, False), (20, True)):
        side = dataclasses.replace(feature_set(fake[:count]), blocks=blocks_of(fake[:count]))
        assert ("fid_std" in metrics.compute(["fid"], feature_set(real), side)) is there


def test_coverage_std_equals_the_jackknife_by_brute_force():
    real, fake = PAIRS["random"]
    dealt = Dealer()(len(fake))
    without = [
        plain.density_coverage(real, fake[dealt != block], 5)["coverage"] for block in range(10)
    ]
    got = compute("density_coverage", real, fake)
    assert got["coverage_std"] == pytest.approx(jackknife(without), rel=1e-9)
    assert got["coverage_std"] > 0


def test_density_std_is_the_standard_error_of_its_mean():
    real, fake = PAIRS["random"]
    each = [plain.density_coverage(real, fake[i : i + 1], 5)["density"] for i in range(len(fake))]
    expected = np.std(each, ddof=1) / len(fake) ** 0.5
    got = compute("density_coverage", real, fake)
    assert got["density_std"] == pytest.approx(expected, rel=1e-9)


def test_density_of_few_samples_has_no_deviation():
    real, fake = PAIRS["random"]
    assert set(compute("density_coverage", real, fake[:19])) == {"density", "coverage"}


def test_fid_of_few_samples_warns_of_their_share():
    real, fake = PAIRS["random"]
    with pytest.warns(UserWarning, match=r"FID of 7 generated samples in 7 dim.*: about .* owed"):
        compute("fid", real, fake[:7])
    with pytest.warns(UserWarning, match=r"FID of 6 real samples in 7 dimensions: about .* owed"):
        compute("fid", real[:6], fake)


def test_fid_refuses_a_number_of_samples_that_says_nothing():
    features = np.random.RandomState(0).standard_normal((100, 64))
    with pytest.raises(ValueError, match="7 generated samples for FID in 64 dimensions.* least 8"):
        compute("fid", features, features[:7])


def test_compute_merges_several_metrics_in_order():
    real, fake = PAIRS["random"]
    got = metrics.compute(["kid", "fid"], feature_set(real), feature_set(fake))
    assert list(got) == ["kid", "kid_std", "kid_standard_error", "fid", "fid_bias"]


def test_fd_ratio_is_the_distance_in_units_of_half_of_the_real_against_half():
    random = np.random.RandomState(0)
    real, same = (random.standard_normal((400, 3)) for _ in range(2))
    got = compute("fd_ratio", real, same)["fd_ratio"]
    assert 0.1 < got < 2  # as far as halves are, or nearer: it is of more samples
    shifted = compute("fd_ratio", real, real + np.array([3.0, 0.0, 0.0]))["fd_ratio"]
    floors, order = [], np.random.RandomState(0)
    for _ in range(5):
        half = order.permutation(400)
        sides = [real[half[part::2]] for part in range(2)]
        (a, b), (c, d) = zip(*[(it.mean(0), np.cov(it.T)) for it in sides], strict=True)
        floors.append(((a - b) ** 2).sum() + np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real))
    assert shifted == pytest.approx(9 / np.mean(floors), rel=1e-6)


def test_fd_ratio_of_few_samples_is_warned_of_once():
    random = np.random.RandomState(0)
    real, few = random.standard_normal((60, 40)), random.standard_normal((20, 40))
    with pytest.warns(UserWarning, match="fd_ratio of 20") as said:
        compute("fd_ratio", real, few)
    about = [str(one.message) for one in said if "fd_ratio of 20 samples" in str(one.message)]
    assert len(about) == 1 and not [one for one in said if "30 feature" in str(one.message)]


def test_fd_ratio_refuses_real_images_that_are_all_alike_or_too_few():
    random = np.random.RandomState(0)
    with pytest.raises(ValueError, match="halves of the real images do not differ"):
        compute("fd_ratio", np.ones((40, 3)), random.standard_normal((40, 3)))
    with pytest.raises(ValueError, match="4 real samples for FID in 64 dimensions"):
        compute("fd_ratio", random.standard_normal((9, 64)), random.standard_normal((40, 64)))


def test_available_metrics_each_say_what_they_are():
    assert metrics.available() == [
        "density_coverage", "diversity", "fd_ratio", "fid", "inception_score", "kid",
        "precision_recall", "seed_diversity",
    ]  # fmt: skip
    assert all(text.endswith(".") for text in metrics.summaries().values())


def test_needs_are_those_of_all_metrics():
    got = metrics.needs(["fid", "inception_score", "diversity"])
    assert got.real == {"statistics"}
    assert got.fake == {"statistics", "blocks", "logits", "features", "labels"}


def test_compute_refuses_an_unknown_metric():
    with pytest.raises(ValueError, match="metric='kidd'.* did you mean 'kid'"):
        metrics.compute(["kidd"], None, feature_set(np.zeros((3, 2))))


def test_check_options_refuses_an_unknown_option():
    with pytest.raises(ValueError, match="metric kid has no option 'size', expected one of"):
        metrics.check_options({"kid": {"size": 3}})


def test_compute_refuses_another_extractor():
    fake = feature_set(np.zeros((3, 2)), extractor="inception_v3/edm")
    with pytest.raises(ValueError, match="'test/none' and generated ones of 'inception_v3/edm'"):
        metrics.compute(["kid"], feature_set(np.zeros((3, 2))), fake)


def test_compute_refuses_what_was_not_kept():
    fake = PAIRS["random"][1]
    with pytest.raises(ValueError, match="inception_score needs logits of the generated"):
        metrics.compute(["inception_score"], None, feature_set(fake))
    with pytest.raises(ValueError, match="kid needs features of the real samples"):
        metrics.compute(["kid"], None, feature_set(fake))


@pytest.mark.parametrize(
    ("name", "side", "fewest"),
    [
        ("fid", "generated", 6),
        ("fid", "real", 6),
        ("inception_score", "generated", 10),
        ("precision_recall", "generated", 4),
        ("density_coverage", "real", 6),
    ],
)
def test_check_counts_refuses_what_compute_refuses(name, side, fewest):
    metrics.check_counts([name], fewest, 48, side)
    random = np.random.RandomState(0)
    counts = {"real": 60, "generated": 60, side: fewest - 1}
    sides = [
        feature_set(random.standard_normal((n, 48)), logits=random.standard_normal((n, 3)))
        for n in (counts["real"], counts["generated"])
    ]
    with pytest.raises(ValueError) as early:
        metrics.check_counts([name], fewest - 1, 48, side)
    with pytest.raises(ValueError, match=re.escape(str(early.value))):
        metrics.compute([name], *sides)


def test_check_counts_refuses_nothing_of_sides_that_are_not_read():
    metrics.check_counts(["inception_score"], 1, 48, "real")
    metrics.check_counts(["density_coverage"], 1, 48, "generated")
