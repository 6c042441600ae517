"""CLIP score and the preparation of its images, by hand."""

import math

import numpy as np
import pytest

from dmd2_jax.metrics.features.clip import SCORES, ClipPreparation, clip_preparation, cosines

ONE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def test_scores_are_cosines_by_their_scales_of_which_one_is_cut_at_0():
    images = np.array([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    texts = np.array([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    apart = cosines(images, texts)
    np.testing.assert_allclose(SCORES["clip_score"].of(apart, 2.0), [60.0, 0.0, 0.0])
    np.testing.assert_allclose(SCORES["pick_score"].of(apart, math.log(4)), [2.4, 0.0, -4.0])
    np.testing.assert_allclose(SCORES["hps_v2"].of(apart, 2.0), [0.6, 0.0, -1.0])


def test_clip_preparation_normalises_each_channel():
    prepare = ClipPreparation(2, 2, mean=(0.0, 0.5, 1.0), std=(1.0, 2.0, 4.0))
    image = np.full((1, 2, 2, 3), 51, np.uint8)  # 0.2
    np.testing.assert_allclose(prepare(image)[0, 0, 0], [0.2, -0.15, -0.2], rtol=1e-6)


def test_clip_preparation_cuts_the_middle_of_the_resized_image():
    ramp = np.repeat(np.arange(8, dtype=np.uint8)[None, :, None, None], 8, axis=2)
    got = ClipPreparation(8, 4, **ONE, scale=1.0)(ramp)
    np.testing.assert_array_equal(got[0, :, :, 0], np.repeat([[2], [3], [4], [5]], 4, axis=1))
    assert got.shape == (1, 4, 4, 3)


def test_clip_preparation_resizes_the_shorter_side():
    wide = np.zeros((1, 4, 10, 3), np.uint8)
    wide[:, :, 5:] = 200
    got = ClipPreparation(8, 8, **ONE, scale=1.0, filter=0)(wide)  # nearest: 8 x 20, cut 6..14
    np.testing.assert_array_equal(got[0, 0, :, 0], [0] * 4 + [200] * 4)


def test_clip_preparation_of_whole_images_adds_black_before_it_normalises():
    wide = np.full((1, 4, 8, 3), 100, np.uint8)
    mean = {"mean": (50.0, 50.0, 50.0), "std": (1.0, 1.0, 1.0)}
    got = ClipPreparation(4, 4, **mean, scale=1.0, whole=True)(wide)[0, :, :, 0]
    np.testing.assert_array_equal(got, np.repeat([[-50], [50], [50], [-50]], 4, axis=1))


def test_clip_preparation_of_whole_images_rounds_to_no_bytes():
    edge = np.zeros((1, 4, 4, 3), np.uint8)
    edge[:, :, 2:] = 255
    got = ClipPreparation(3, 3, **ONE, scale=1.0, whole=True)(edge)
    middle = got[0, 1, 1, 0]
    assert 127 < middle < 128 and got.min() < -1  # nor cut where the filter overshoots


def test_clip_preparation_reads_sizes_as_any_release_writes_them():
    old = clip_preparation({"size": 32, "crop_size": 24})
    new = clip_preparation(
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}, "resample": 2}
    )
    assert (old.size, old.crop, old.filter) == (32, 24, 3)
    assert (new.size, new.crop, new.filter) == (32, 24, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_normalize": False}, "do_normalize=false"),
        ({"size": 24, "crop_size": 32}, "crop_size <= size"),
        ({"size": {"height": 24, "width": 32}}, "expected one number of pixels"),
        ({"resample": 9}, "resample=9"),
        ({"image_std": [1.0, 0.0, 1.0]}, "deviations above 0"),
        ({"image_mean": [0.5]}, "three numbers each"),
    ],
)
def test_clip_preparation_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        clip_preparation(settings)
