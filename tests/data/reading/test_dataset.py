"""ImageDataset, what every source needs, and the shuffled stream of examples."""

import itertools
import time

import numpy as np
import pytest

from dmd2_jax.data import (
    ImageDataset,
    Options,
    batch_at,
    batches,
    batches_at,
    batches_from,
    example_indices,
    process_rows,
    to_memory,
)
from dmd2_jax.data.reading.contract import NoSplitError
from dmd2_jax.data.reading.dataset import (
    Subset,
    class_counts,
    held_out,
    pad_to,
    select_split,
    split_indices,
    to_model,
    to_uint8,
)

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


def test_image_dataset_says_height_and_width_where_they_differ():
    images = np.zeros((2, 4, 5, 1), np.uint8)
    assert ImageDataset(images, np.zeros(2, np.int32), 1, "toy").resolution == (4, 5)


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


def test_subset_reads_its_examples_by_their_own_numbers():
    part = Subset(make_dataset(10), np.array([7, 2, 5]))
    np.testing.assert_array_equal(part.examples(np.array([2, 0]))["label"], [5, 7])
    assert (len(part), part.num_classes, part.resolution, part.channels) == (3, 10, 2, 1)


def test_to_memory_returns_what_is_in_memory_as_it_is():
    dataset = make_dataset()
    assert to_memory(dataset, limit=1) is dataset


def test_to_memory_reads_every_example_in_order():
    order = np.random.RandomState(0).permutation(2500) % 250
    got = to_memory(Subset(make_dataset(250), order))
    np.testing.assert_array_equal(got.labels, order)
    np.testing.assert_array_equal(got.images[:, 0, 0, 0], order)


def test_to_memory_refuses_more_than_the_limit():
    part = Subset(make_dataset(10, size=4, channels=3), np.arange(10))
    to_memory(part, limit=480)
    with pytest.raises(ValueError, match="toy: 10 images take"):
        to_memory(part, limit=479)


def test_held_out_is_the_share_of_every_class_and_the_same_every_time():
    labels = np.repeat([3, 0, 8], [40, 20, 4]).astype(np.int32)
    mask = held_out(labels, 0.25)
    assert np.bincount(labels[mask]).tolist() == [5, 0, 0, 10, 0, 0, 0, 0, 1]
    np.testing.assert_array_equal(mask, held_out(labels, 0.25))
    assert len(set(np.flatnonzero(mask[:40]) // 10)) > 1  # drawn, not the first ten


def test_split_indices_are_disjoint_and_complete():
    labels = np.arange(30) % 3
    train, test, both = (split_indices(labels, s, 0.1, "toy") for s in ("train", "test", "all"))
    np.testing.assert_array_equal(np.sort([*train, *test]), both)
    assert len(test) == 3


def test_split_indices_refuse_a_split_without_images():
    with pytest.raises(ValueError, match=r"=0\.1 of each class.*none for test.*fraction=0 to hold"):
        split_indices(np.arange(4), "test", 0.1, "toy")


def test_split_indices_hold_nothing_out_where_the_fraction_is_0():
    options = Options(test_fraction=0.0)
    train = split_indices(np.arange(30) % 3, "train", options.test_fraction, "toy")
    np.testing.assert_array_equal(train, np.arange(30))
    with pytest.raises(NoSplitError, match=r"toy has no test split and .*test_fraction=0 holds"):
        split_indices(np.arange(30) % 3, "test", options.test_fraction, "toy")


@pytest.mark.parametrize(
    "values",
    [{"test_fraction": -0.1}, {"test_fraction": 1.0}, {"max_corrupt": -1}, {"workers": -1}],
)
def test_options_refuse_values_out_of_range(values):
    with pytest.raises(ValueError, match=f"config.data.{next(iter(values))}=.*expected"):
        Options(**values)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_processes_together_read_the_same_global_batch(processes):
    dataset = make_dataset(20)
    whole = batches_from(dataset, 12, 3, batch_size=8, seed=5)
    parts = [
        batches_from(dataset, 12, 3, batch_size=8, seed=5, rows=process_rows(8, p, processes))
        for p in range(processes)
    ]
    for name in ("image", "label"):
        joined = np.concatenate([part[name] for part in parts], axis=1)
        np.testing.assert_array_equal(joined, whole[name])


def test_a_process_reads_its_own_rows_only():
    dataset, asked = make_dataset(20), []

    class Spy:
        def __len__(self):
            return 20

        def examples(self, indices):
            asked.extend(indices)
            return dataset.examples(indices)

    batches_from(Spy(), 0, 2, batch_size=8, seed=5, rows=process_rows(8, 3, 4))
    assert len(asked) == 4


def test_processes_resume_where_another_number_of_them_stopped():
    dataset = make_dataset(20)
    whole = batches_from(dataset, 0, 4, batch_size=8, seed=5)["label"].reshape(-1)
    # 16 examples were read by one process in batches of 8; then two read batches of 16.
    parts = [
        batches_from(dataset, 16, 1, batch_size=16, seed=5, rows=process_rows(16, p, 2))["label"]
        for p in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1)[0], whole[16:])


def test_process_rows_refuse_a_batch_that_does_not_split():
    with pytest.raises(ValueError, match="batch_size=10 for process 0 of 4.*try 12"):
        process_rows(10, 0, 4)


def test_example_indices_of_a_million_are_fast():
    example_indices(1_281_167, start=0, count=1, seed=1)
    start = time.perf_counter()
    for step in range(20):
        example_indices(1_281_167, start=step * 280, count=280, seed=1)
    assert time.perf_counter() - start < 0.5  # 1 ms where the epoch's order is kept, else 40 each
