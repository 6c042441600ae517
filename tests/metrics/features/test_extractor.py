"""Streams of images to features: batching, devices, what is kept, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax import metrics
from dmd2_jax.data import digits, to_model
from dmd2_jax.metrics.features.blocks import Dealer
from dmd2_jax.metrics.features.classifier import Classifier
from dmd2_jax.metrics.features.extractor import Collector, Extractor, classifier_extractor, collect
from dmd2_jax.metrics.features.moments import feature_statistics
from dmd2_jax.networks.classifier import ConvClassifier
from dmd2_jax.runtime.sharding import make_mesh


def untrained(seed):
    """A classifier of digits with random weights: a feature space like any other."""
    module, random = ConvClassifier(10, num_features=5, width=2), np.random.RandomState(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1], initial=1.0)
        return (random.standard_normal(leaf.shape) * (2 / fan_in) ** 0.5).astype(np.float32)

    return Classifier(module, jax.tree.map(draw, shapes), (8, 8, 1), float("nan"))


def apply(params, images):
    """Three features and two logits that can be checked by hand: multiples of the pixels' sum."""
    sums = images.astype(jnp.float32).sum(axis=(1, 2, 3))[:, None]
    return sums * params["weights"], sums * jnp.array([1.0, -1.0])


def extractor(**options):
    options = {"batch_size": 4, **options}
    params = {"weights": jnp.array([1.0, 2.0, 3.0])}
    return Extractor("sums/none", 3, options.pop("apply", apply), params, **options)


def images(n, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (n, 2, 2, 1)).astype(np.uint8)


def sums(given):
    return given.astype(np.float64).sum(axis=(1, 2, 3))[:, None] * [1.0, 2.0, 3.0]


@pytest.fixture(scope="module")
def classifier():
    return untrained(0)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_extractor_gives_one_vector_an_image(count):
    features, logits = extractor()(images(count))
    np.testing.assert_array_equal(features, sums(images(count)))
    np.testing.assert_array_equal(logits[:, 0], -logits[:, 1])
    assert logits.shape == (count, 2)


def test_extractor_rounds_floats_to_bytes():
    within_half_a_step = np.asarray(to_model(images(3))) + 0.4 / 127.5
    np.testing.assert_array_equal(extractor()(within_half_a_step)[0], sums(images(3)))


def test_extractor_compiles_once_for_any_number_of_images():
    traced = []

    def counting(params, x):
        traced.append(x.shape)
        return apply(params, x)

    network = extractor(apply=counting)
    for count in (1, 4, 9):
        network(images(count))
    assert traced == [(4, 2, 2, 1)]


def test_fid_on_eight_devices_equals_one(classifier):
    """To 1e-4 of the figure."""
    data, random = digits.load(split="all").images, np.random.RandomState(0)
    noise = random.randint(0, 256, data[:300].shape).astype(np.uint8)
    figures = []
    for devices in (1, 8):
        mesh = make_mesh({"data": devices}, jax.devices()[:devices])
        network = classifier_extractor(classifier, batch_size=64, mesh=mesh)
        sides = [collect(network, [{"image": side}]) for side in (data, noise)]
        figures.append(metrics.compute(["fid"], *sides)["fid"])
    assert figures[0] > 1e-3
    np.testing.assert_allclose(figures[0], figures[1], rtol=1e-4)


def test_classifier_extractor_agrees_with_the_classifier(classifier):
    given = digits.load(split="test").images[:9]
    for got, expected in zip(
        classifier_extractor(classifier)(given), classifier(given), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_classifier_extractor_is_named_by_its_weights(classifier):
    names = [classifier_extractor(one).name for one in (classifier, classifier, untrained(1))]
    assert names[0] == names[1] != names[2]


def test_classifier_extractor_refuses_images_of_another_size(classifier):
    with pytest.raises(ValueError, match=r"shape \(2, 9, 9, 1\), expected .* \[n, 8, 8, 1\]"):
        classifier_extractor(classifier)(np.zeros((2, 9, 9, 1), np.uint8))


def test_collect_streams_the_statistics_of_all_batches(monkeypatch):
    monkeypatch.setattr("dmd2_jax.metrics.features.blocks._AT_ONCE", 6)
    given = images(23)
    batches = [{"image": part} for part in np.split(given, [1, 9, 14])]
    got = collect(extractor(), batches).statistics
    expected = feature_statistics(sums(given))
    assert got.count == 23
    np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(got.covariance, expected.covariance, rtol=1e-10)


def test_collect_keeps_what_is_asked_for_and_no_more():
    batches = [{"image": images(3, i), "label": np.full(3, i)} for i in range(2)]
    got = collect(extractor(), batches, keep=("statistics", "features", "labels"))
    np.testing.assert_array_equal(got.features, sums(np.concatenate([images(3), images(3, 1)])))
    np.testing.assert_array_equal(got.labels, [0, 0, 0, 1, 1, 1])
    assert got.logits is None


def test_collect_keeps_the_statistics_of_dealt_blocks(monkeypatch):
    monkeypatch.setattr("dmd2_jax.metrics.features.blocks._AT_ONCE", 2)
    batches = [{"image": part} for part in np.split(images(64), [1, 9, 30])]
    got = collect(extractor(), batches, keep=("blocks",))
    dealt = Dealer()(64)
    assert len(got.blocks) == 10
    for block, statistics in enumerate(got.blocks):
        expected = feature_statistics(sums(images(64)[dealt == block]))
        assert statistics.count == expected.count
        np.testing.assert_allclose(statistics.mean, expected.mean, rtol=1e-12)
        np.testing.assert_allclose(statistics.scatter, expected.scatter, rtol=1e-9)
    whole = feature_statistics(sums(images(64)))
    np.testing.assert_allclose(got.statistics.covariance, whole.covariance, rtol=1e-10)


def test_what_fid_needs_of_generated_samples_gives_its_deviation():
    real, fake = (
        collect(extractor(), [{"image": images(count, count)}], keep)
        for count, keep in ((40, metrics.needs(["fid"]).real), (30, metrics.needs(["fid"]).fake))
    )
    assert real.blocks is None
    assert metrics.compute(["fid"], real, fake)["fid_std"] > 0


def test_collect_names_the_samples_whose_features_are_not_finite():
    def broken(params, x):
        features, logits = apply(params, x)
        return jnp.where(features > 600, jnp.nan, features), logits

    given = np.zeros((6, 2, 2, 1), np.uint8)
    given[5] = 255
    batches = [{"image": given[:4]}, {"image": given[4:]}]
    with pytest.raises(ValueError, match=r"features of 1 samples hold NaN .*\(img5\.png\)"):
        collect(extractor(apply=broken), batches, describe="img{}.png".format)


def test_collector_refuses_images_of_two_sizes():
    collector = Collector(extractor(), describe="img{}.png".format)
    collector.add(images(4))
    with pytest.raises(ValueError, match=r"img4\.png on have shape \(3, 2, 1\), expected \(2, 2"):
        collector.add(np.zeros((1, 3, 2, 1), np.uint8))


def test_collect_refuses_labels_that_are_not_there():
    with pytest.raises(ValueError, match="no labels for 4 images"):
        collect(extractor(), [{"image": images(4)}], keep=("labels",))


def test_collect_refuses_logits_of_a_network_without():
    network = extractor(apply=lambda params, x: (apply(params, x)[0], None))
    with pytest.raises(ValueError, match="no logits for 4 images"):
        collect(network, [{"image": images(4)}], keep=("logits",))


def test_collect_refuses_an_empty_stream():
    with pytest.raises(ValueError, match="got no images"):
        collect(extractor(), [])


def test_collector_refuses_to_keep_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"keep=\['images'\]"):
        Collector(extractor(), keep=("images",))


def test_extractor_refuses_images_that_are_not_finite():
    with pytest.raises(ValueError, match="images hold NaN"):
        extractor()(np.full((2, 2, 2, 1), np.nan, np.float32))


def test_extractor_refuses_a_batch_that_does_not_split():
    with pytest.raises(ValueError, match="batch_size=4 must be divisible by data shards=8"):
        extractor(mesh=make_mesh({"data": 8}))
