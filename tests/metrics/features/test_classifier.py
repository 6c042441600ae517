"""The classifier that makes the features, its cache, and the real images in its features."""

import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.data import ImageDataset, digits, to_model
from dmd2_jax.data.reading.dataset import class_counts
from dmd2_jax.metrics.features import classifier as lib
from dmd2_jax.metrics.features.moments import feature_statistics, fid
from dmd2_jax.networks.classifier import ConvClassifier

TINY = lib.Training(steps=3, batch_size=8, num_features=5, width=2)


@pytest.fixture(scope="module")
def real():
    return digits.load(split="train"), digits.load(split="test")


@pytest.fixture(scope="module")
def classifier(real):
    return lib.train_classifier(*real)


@pytest.fixture(scope="module")
def reference(classifier, real):
    return lib.real_statistics(classifier, *real)


def leaves(classifier):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(classifier.params)]


def test_train_classifier_names_97_percent_of_unseen_digits(classifier):
    assert classifier.test_accuracy >= 0.97


def test_test_accuracy_is_the_fraction_of_right_test_images(classifier, real):
    test = real[1]
    correct = classifier.predict(test.images) == test.labels
    assert classifier.test_accuracy == pytest.approx(correct.sum() / 359)


def test_classifier_does_not_depend_on_batching(classifier, real):
    """7 images (padded) equal the same ones among 1,438 (three batches, the last padded)."""
    few, many = (classifier(real[0].images[:n]) for n in (7, 1438))
    assert many[0].shape == (1438, 48)
    for one, other in zip(few, many, strict=True):
        np.testing.assert_allclose(one, other[:7], rtol=1e-5, atol=1e-5)


def test_classifier_rounds_floats_to_bytes(classifier, real):
    images = real[0].images[:5]
    within_half_a_step = np.asarray(to_model(images)) + 0.4 / 127.5
    np.testing.assert_array_equal(classifier(within_half_a_step)[0], classifier(images)[0])


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (4, 8, 8, 3), (4, 16, 16, 1)])
def test_classifier_refuses_images_of_another_size(classifier, shape):
    with pytest.raises(ValueError, match=r"expected \[n, h, w, c\] = \[n >= 1, 8, 8, 1\]"):
        classifier(np.zeros(shape, np.uint8))


def test_train_classifier_is_a_function_of_the_seed(real):
    first, again, other = (lib.train_classifier(*real, seed, training=TINY) for seed in (1, 1, 2))
    for a, b in zip(leaves(first), leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(leaves(first), leaves(other), strict=True))


def test_train_classifier_refuses_splits_of_different_size(real):
    other = ImageDataset(np.zeros((4, 16, 16, 1), np.uint8), np.zeros(4, np.int32), 10, "other")
    with pytest.raises(ValueError, match="load both from one data set"):
        lib.train_classifier(real[0], other)


def test_train_classifier_refuses_images_of_one_class(real):
    train, test = (ImageDataset(d.images, np.full_like(d.labels, 3), 10, d.name) for d in real)
    with pytest.raises(ValueError, match=r"images of 1 class, expected 2 or more .*inception"):
        lib.train_classifier(train, test, training=TINY)


def test_train_classifier_warns_of_a_classifier_near_chance(real, caplog):
    lib.train_classifier(*real, training=TINY)  # three steps teach it nothing
    (record,) = caplog.records
    most = class_counts(real[1]).max() / 359
    assert f"always the most frequent class would {100 * most:.1f} %" in record.message


@pytest.mark.parametrize(("accuracy", "warns"), [(0.18, True), (0.21, False)])
def test_near_chance_is_a_tenth_of_the_way_from_the_most_frequent_class(
    classifier, real, caplog, accuracy, warns
):
    assert class_counts(real[1]).max() == 37  # of 359: a tenth of the way is 0.193
    lib._warn_near_chance(replace(classifier, test_accuracy=accuracy), real[1])
    assert bool(caplog.records) == warns


def forbid_training(monkeypatch):
    def refuse(*_):
        raise AssertionError("trained although the cache has it")

    monkeypatch.setattr(lib, "_fit", refuse)


def test_train_classifier_reads_its_cache(real, tmp_path, monkeypatch):
    first = lib.train_classifier(*real, cache_dir=tmp_path / "new", training=TINY)
    forbid_training(monkeypatch)
    second = lib.train_classifier(*real, cache_dir=tmp_path / "new", training=TINY)
    for a, b in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.test_accuracy == second.test_accuracy
    assert [file.suffix for file in (tmp_path / "new").iterdir()] == [".npz"]


def test_train_classifier_cache_depends_on_the_content(real, tmp_path):
    train, test = real
    flipped = ImageDataset(255 - train.images, train.labels, 10, train.name)
    for arguments in ((train, test, 0), (train, test, 1), (flipped, test, 0)):
        lib.train_classifier(*arguments, cache_dir=tmp_path, training=TINY)
    assert len(list(tmp_path.iterdir())) == 3


def truncated(file):
    file.write_bytes(file.read_bytes()[:-300])


def flipped_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def other_tensors(file):
    np.savez(file, kernel=np.zeros(3))


def pickled(file):
    with np.load(file) as archive:
        names = archive.files
    np.savez(file, **{name: np.array([None, {}], dtype=object) for name in names})


def not_finite(file):
    with np.load(file) as archive:
        arrays = {name: np.full_like(archive[name], np.nan) for name in archive.files}
    np.savez(file, **arrays)


def without_end(file):
    with np.load(file) as archive:
        names = archive.files
    np.savez_compressed(file, **{name: np.zeros(2**22, np.float32) for name in names})


@pytest.mark.parametrize(
    "damage", [truncated, flipped_byte, other_tensors, pickled, not_finite, without_end]
)
def test_train_classifier_replaces_a_damaged_cache(real, tmp_path, caplog, damage):
    first = lib.train_classifier(*real, cache_dir=tmp_path, training=TINY)
    (file,) = tmp_path.iterdir()
    intact = leaves(first)
    damage(file)
    with caplog.at_level(logging.WARNING):
        second = lib.train_classifier(*real, cache_dir=tmp_path, training=TINY)
    assert "is damaged" in caplog.text
    assert ("it unfolds to" in caplog.text) == (damage is without_end)  # before it does
    with np.load(file, allow_pickle=False) as archive:
        assert sum(archive[name].size for name in archive.files) == sum(a.size for a in intact)
    for a, b in zip(intact, leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_train_classifier_survives_a_cache_that_cannot_be_written(real, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    result = lib.train_classifier(*real, cache_dir=tmp_path / "file", training=TINY)
    assert "could not keep the classifier" in caplog.text
    assert 0.0 <= result.test_accuracy <= 1.0


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (64, 64, 3)])
def test_conv_classifier_takes_8_to_64_pixels(shape):
    module = ConvClassifier(num_classes=7, num_features=11, width=2)
    features, logits = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x)[0], jnp.zeros((3, *shape))
    )
    assert (features.shape, logits.shape) == ((3, 11), (3, 7))


def test_shift_images_moves_down_and_right():
    images = np.zeros((2, 5, 6, 1), np.float32)
    images[:, 2, 3] = 1.0
    moved = lib.shift_images(jnp.asarray(images), jnp.array([[1, -2], [0, 2]]))
    np.testing.assert_array_equal(np.argwhere(moved[..., 0]), [[0, 3, 1], [1, 2, 5]])


def test_shift_images_repeats_the_border():
    image = jnp.arange(3.0).reshape(1, 1, 3, 1)
    moved = [lib.shift_images(image, jnp.array([[5, s]])).ravel().tolist() for s in (1, -2)]
    assert moved == [[0, 0, 1], [2, 2, 2]]


def test_real_statistics_are_of_all_splits_together(classifier, real, reference):
    both = classifier(digits.load(split="all").images)[0]
    assert reference[0].count == 1797
    np.testing.assert_allclose(reference[0].mean, both.astype(np.float64).mean(0), rtol=1e-6)


def test_real_fid_floor_of_one_distribution_is_the_bias_of_its_halves():
    """For N(0, I_d), n a half: (2 / n) (d from means + d (d + 1) / 4 from covariances)."""
    n, d = 2000, 8
    features = np.random.RandomState(0).standard_normal((2 * n, d))
    mean, deviation = lib.real_fid_floor(features, repeats=50)
    expected = (d + d * (d + 1) / 4) * 2 / n
    np.testing.assert_allclose(mean, expected, rtol=0.15)
    assert 0.0 < deviation < mean


def test_real_fid_floor_with_labels_halves_every_class():
    """Two classes far apart: without labels the halves differ in how many they have of each."""
    labels = np.repeat([0, 1], 100)
    features = np.random.RandomState(0).standard_normal((200, 2)) + 50 * labels[:, None]
    stratified, plain = lib.real_fid_floor(features, labels)[0], lib.real_fid_floor(features)[0]
    assert stratified < 1.0 < plain


@pytest.mark.parametrize("count", [3, 5])
def test_real_fid_floor_refuses_too_few_vectors_or_labels(count):
    with pytest.raises(ValueError, match="expected"):
        lib.real_fid_floor(np.zeros((count, 2)), np.zeros(3, np.int32))


def measured(statistics, images, labels, classifier):
    """FID and class accuracy, as every measurement in a classifier's features takes them."""
    features, logits = classifier(images)
    return {
        "fid": fid(statistics, feature_statistics(features)),
        "class_accuracy": float((logits.argmax(axis=-1) == labels).mean()),
    }


def test_measuring_digits_of_the_reference_itself_is_perfect(classifier, real, reference):
    both = digits.load(split="all")
    report = measured(reference[0], both.images, both.labels, classifier)
    assert report["fid"] < 1e-6
    errors = (1 - classifier.test_accuracy) * 359
    assert 1 - report["class_accuracy"] == pytest.approx(errors / 1797, abs=0.01)


def test_measuring_digits_orders_noise_blur_and_real(classifier, real, reference):
    images, labels = real[1].images, real[1].labels
    noise = np.random.RandomState(0).randint(0, 256, images.shape).astype(np.uint8)
    noisy = (0.7 * images + 0.3 * noise).astype(np.uint8)
    a, b, c = (measured(reference[0], x, labels, classifier)["fid"] for x in (images, noisy, noise))
    assert 2 * a < b < c / 2


def test_measuring_digits_counts_wrong_classes(classifier, real, reference):
    test = real[1]
    shifted = (test.labels + 1) % 10
    report = measured(reference[0], test.images, shifted, classifier)
    assert report["class_accuracy"] < 0.03


def test_measuring_digits_sees_a_missing_mode(classifier, real, reference):
    test = real[1]
    kept = test.labels != 3
    whole, lacking = (
        measured(reference[0], test.images[k], test.labels[k], classifier)["fid"]
        for k in (slice(None), kept)
    )
    assert lacking > 2 * whole
    assert class_counts(test)[3] == (~kept).sum()
