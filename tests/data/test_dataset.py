"""ImageDataset and the shuffled stream of examples."""

import itertools

import numpy as np
import pytest

from dmd2_jax.data import ImageDataset, batch_at, batches, batches_at, example_indices
from dmd2_jax.data.dataset import class_counts, pad_to, select_split, to_model, to_uint8

PINNED_ORDER = [4, 3, 2, 7, 8, 7, 5, 8, 2, 3, 6, 0]


def make_dataset(n=10, size=2, channels=1, num_classes=None):
    """n images, each filled with its own number, which is its label too."""
    values = np.arange(n)
    images = np.broadcast_to(values[:, None, None, None], (n, size, size, channels))
    return ImageDataset(images.astype(np.uint8), values.astype(np.int32), num_classes or n, "toy")


def test_image_dataset_reports_resolution_channels_and_length():
    dataset = make_dataset(5, size=4, channels=3)
    assert (len(dataset), dataset.resolution, dataset.channels) == (5, 4, 3)


def test_image_dataset_refuses_float_images():
    with pytest.raises(ValueError, match="dtype float32, expected uint8"):
        ImageDataset(np.zeros((2, 4, 4, 1), np.float32), np.zeros(2, np.int32), 1, "toy")


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 1, 4, 4), (2, 4, 4, 2)])
def test_image_dataset_refuses_images_without_trailing_channels(shape):
    with pytest.raises(ValueError, match=r"expected \[n, h, w, c\]"):
        ImageDataset(np.zeros(shape, np.uint8), np.zeros(2, np.int32), 1, "toy")


def test_image_dataset_refuses_images_that_are_not_square():
    with pytest.raises(ValueError, match="4 by 5, expected squares"):
        ImageDataset(np.zeros((2, 4, 5, 1), np.uint8), np.zeros(2, np.int32), 1, "toy")


def test_image_dataset_refuses_no_images():
    with pytest.raises(ValueError, match="expected at least one image"):
        ImageDataset(np.zeros((0, 4, 4, 1), np.uint8), np.zeros(0, np.int32), 1, "toy")


@pytest.mark.parametrize("labels", [np.zeros(3, np.int32), np.zeros(2, np.int64)])
def test_image_dataset_refuses_labels_of_another_number_or_type(labels):
    with pytest.raises(ValueError, match=r"expected int32 of shape \(2,\)"):
        ImageDataset(np.zeros((2, 4, 4, 1), np.uint8), labels, 1, "toy")


@pytest.mark.parametrize("label", [-1, 3])
def test_image_dataset_refuses_labels_outside_the_range(label):
    labels = np.array([0, label], np.int32)
    with pytest.raises(ValueError, match=r"expected 0\.\.2"):
        ImageDataset(np.zeros((2, 4, 4, 1), np.uint8), labels, 3, "toy")


def test_to_model_maps_the_ends_of_the_byte_range_to_plus_and_minus_one():
    mapped = to_model(np.array([0, 51, 255], np.uint8))
    np.testing.assert_allclose(mapped, [-1.0, -0.6, 1.0], atol=1e-7)
    assert mapped.dtype == np.float32


def test_to_uint8_inverts_to_model_for_every_byte():
    every_byte = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(to_model(every_byte)), every_byte)


def test_to_uint8_clips_what_lies_outside():
    np.testing.assert_array_equal(to_uint8(np.array([-1.5, 3.0], np.float32)), [0, 255])


def test_pad_to_surrounds_with_black():
    padded = pad_to(make_dataset(3, size=2, num_classes=3), 5).images[2, :, :, 0]
    np.testing.assert_array_equal(np.argwhere(padded == 2), [[1, 1], [1, 2], [2, 1], [2, 2]])
    assert padded.sum() == 8


def test_pad_to_refuses_to_shrink():
    with pytest.raises(ValueError, match="4 pixels wide, expected at most 2"):
        pad_to(make_dataset(size=4), 2)


def test_select_split_all_joins_the_splits_in_order():
    splits = {"train": (np.zeros((2, 1)), np.zeros(2)), "test": (np.ones((1, 1)), np.ones(1))}
    np.testing.assert_array_equal(select_split(splits, "all", "toy")[1], [0, 0, 1])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 23])
def test_batches_show_every_example_once_an_epoch(batch_size):
    stream = batches(make_dataset(10), batch_size=batch_size, seed=3)
    labels = np.concatenate([b["label"] for b in itertools.islice(stream, 70 // batch_size + 1)])
    for epoch in labels[:70].reshape(7, 10):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))


def test_batches_keep_images_with_their_labels():
    batch = next(batches(make_dataset(10), batch_size=25, seed=0))
    np.testing.assert_array_equal(batch["image"][:, 1, 1, 0], batch["label"])


def test_batches_reshuffle_every_epoch():
    orders = example_indices(50, start=0, count=200, seed=0).reshape(4, 50)
    assert all((a != b).sum() > 25 for a, b in itertools.combinations(orders, 2))


def test_batches_depend_on_the_seed():
    a, b = (example_indices(50, start=0, count=50, seed=seed) for seed in (0, 1))
    assert (a != b).sum() > 25


def test_example_indices_are_those_of_earlier_versions():
    """Pinned: a resumed run must see the order that the interrupted one saw."""
    np.testing.assert_array_equal(example_indices(9, start=4, count=12, seed=7), PINNED_ORDER)


def test_batch_at_equals_iteration():
    dataset = make_dataset(10)
    for i, batch in enumerate(itertools.islice(batches(dataset, batch_size=4, seed=5), 12)):
        there = batch_at(dataset, i, batch_size=4, seed=5)
        np.testing.assert_array_equal(there["image"], batch["image"])
        np.testing.assert_array_equal(there["label"], batch["label"])


def test_batches_at_stacks_consecutive_batches():
    dataset = make_dataset(10)
    stacked = batches_at(dataset, 6, 5, batch_size=4, seed=5)
    assert stacked["image"].shape == (5, 4, 2, 2, 1)
    for i in range(5):
        one = batch_at(dataset, 6 + i, batch_size=4, seed=5)
        np.testing.assert_array_equal(stacked["label"][i], one["label"])
        np.testing.assert_array_equal(stacked["image"][i], one["image"])


def test_batches_resume_at_the_example_counter():
    dataset = make_dataset(10)
    whole = itertools.islice(batches(dataset, batch_size=4, seed=1), 9)
    labels = np.concatenate([batch["label"] for batch in whole])
    # 24 examples were seen in batches of 4; the rest is read in batches of 6.
    resumed = itertools.islice(batches(dataset, batch_size=6, seed=1, start=24), 2)
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in resumed]), labels[24:])


@pytest.mark.parametrize("arguments", [(-1, 1, 4), (0, 0, 4), (0, 1, 0)])
def test_batches_at_refuses_arguments_out_of_range(arguments):
    first, count, batch_size = arguments
    with pytest.raises(ValueError, match="expected batch_size >= 1"):
        batches_at(make_dataset(), first, count, batch_size=batch_size, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_example_indices_refuse_a_seed_out_of_range(seed):
    with pytest.raises(ValueError, match=r"seed in 0\.\.2"):
        example_indices(10, start=0, count=1, seed=seed)


def test_batches_refuse_an_empty_batch():
    with pytest.raises(ValueError, match="batch_size=0"):
        next(batches(make_dataset(), batch_size=0, seed=0))


def test_class_counts_include_classes_that_do_not_occur():
    np.testing.assert_array_equal(class_counts(make_dataset(3, num_classes=5)), [1, 1, 1, 0, 0])
