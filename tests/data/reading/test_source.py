"""Images decoded when asked for: order, threads, and what happens to corrupt ones."""

import logging
import threading
import time

import numpy as np
import pytest

from dmd2_jax.data.reading.contract import Options
from dmd2_jax.data.reading.decode import CorruptImageError, ImageRefusedError
from dmd2_jax.data.reading.source import CorruptDataError, DecodedSource


def source(count: int = 10, bad: tuple[int, ...] = (), **options: int) -> DecodedSource:
    """Images filled with their own number, which is their class too; some cannot be decoded."""

    def read(i: int) -> tuple[np.ndarray, int]:
        if i in bad:
            raise CorruptImageError("cut short")
        return np.full((2, 2, 1), i % 256, np.uint8), i

    return DecodedSource(
        "toy",
        count,
        read,
        describe=lambda i: f"{i}.png",
        resolution=2,
        num_classes=count,
        options=Options(**options),
    )


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_examples_are_in_the_order_asked_for_with_any_number_of_threads(workers: int) -> None:
    indices = np.random.RandomState(0).randint(0, 200, 333)
    batch = source(200, workers=workers).examples(indices)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], indices)
    np.testing.assert_array_equal(batch["label"], indices)
    assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


def test_examples_use_several_threads() -> None:
    seen = set()

    def read(i: int) -> tuple[np.ndarray, int]:
        seen.add(threading.current_thread().name)
        time.sleep(0.002)
        return np.zeros((2, 2, 1), np.uint8), 0

    it = DecodedSource(
        "toy", 64, read, describe=str, resolution=2, num_classes=1, options=Options(workers=4)
    )
    seen.clear()
    it.examples(np.arange(64))
    assert len(seen) > 1


def test_examples_replace_a_corrupt_image_by_the_next_sound_one() -> None:
    labels = source(bad=(3, 4, 9)).examples(np.arange(10))["label"]
    np.testing.assert_array_equal(labels, [0, 1, 2, 5, 5, 5, 6, 7, 8, 0])


def test_examples_do_not_depend_on_what_was_read_before() -> None:
    fresh, used = (source(50, bad=(3, 4, 9), workers=3) for _ in range(2))
    used.examples(np.arange(50))
    indices = np.array([9, 3, 3, 8])
    np.testing.assert_array_equal(fresh.examples(indices)["label"], used.examples(indices)["label"])


def test_corrupt_images_are_counted_once_and_warned_of_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    it = source(bad=(3, 7))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            it.examples(np.arange(10))
    assert it.corrupt == {3: "3.png (cut short)", 7: "7.png (cut short)"}
    assert caplog.text.count("3.png") == caplog.text.count("7.png") == 1


def test_more_corrupt_images_than_allowed_stop_the_reading_and_are_named() -> None:
    bad = (60, 70, 80)  # not among those that opening looks at
    it = source(1000, bad=bad, max_corrupt=2)
    it.examples(np.array([60, 70]))
    with pytest.raises(CorruptDataError, match=r"3 images.*at most config.data.max_corrupt=2: 60"):
        it.examples(np.array([80]))


def test_no_corrupt_image_is_allowed_where_the_config_says_so() -> None:
    with pytest.raises(CorruptDataError, match=r"0\.png"):
        source(bad=(0,), max_corrupt=0)


def test_a_source_without_a_sound_image_is_refused() -> None:
    with pytest.raises(CorruptDataError, match="none of 5 images"):
        source(5, bad=tuple(range(5)), max_corrupt=9)


def test_a_refused_image_is_not_replaced() -> None:
    def read(i: int) -> tuple[np.ndarray, int]:
        if i == 60:
            raise ImageRefusedError("60.png is 9 x 9 pixels")
        return np.zeros((2, 2, 1), np.uint8), 0

    it = DecodedSource(
        "toy", 1000, read, describe=str, resolution=2, num_classes=1, options=Options()
    )
    with pytest.raises(ImageRefusedError, match=r"60\.png is 9 x 9"):
        it.examples(np.arange(100))


def test_channels_are_three_if_any_image_has_colour() -> None:
    def read(i: int) -> tuple[np.ndarray, int]:
        return np.full((2, 2, 3 if i == 5 else 1), i, np.uint8), 0

    it = DecodedSource(
        "toy", 10, read, describe=str, resolution=2, num_classes=1, options=Options()
    )
    assert it.channels == 3
    np.testing.assert_array_equal(it.examples(np.array([7]))["image"], np.full((1, 2, 2, 3), 7))


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match="toy has no images"):
        source(0)
