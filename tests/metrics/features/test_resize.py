"""Each reference's resizing, against the library that it calls."""

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.metrics.features.resize import PREPARATIONS, prepare, resize_matrix
from tests.metrics import torch_resize
from tests.metrics.torch_resize import SIDES, images


@pytest.fixture(scope="module")
def recorded():
    with np.load(torch_resize.RECORDED) as archive:
        return dict(archive)


def bytes_again(name, prepared):
    """Undo the map to [-1, 1]."""
    prepared = np.asarray(prepared, np.float64)
    return (prepared + 1) * 127.5 if name == "pytorch_fid" else prepared * 128 + 128


def tensorflow1(image, size=299):
    """TF1's bilinear by its definition, pixel by pixel: src = i * in / out, no half pixels."""
    h, w, _ = image.shape
    out = np.empty((size, size, image.shape[-1]))
    for i in range(size):
        y, fy = divmod(i * h / size, 1)
        y0, y1 = int(y), min(int(y) + 1, h - 1)
        row = image[y0] * (1 - fy) + image[y1] * fy
        for j in range(size):
            x, fx = divmod(j * w / size, 1)
            x0, x1 = int(x), min(int(x) + 1, w - 1)
            out[i, j] = row[x0] * (1 - fx) + row[x1] * fx
    return out


# torch's places are float32: one unit in the last place of 300 is 3e-5 of a pixel.
INTERPOLATE = {"atol": 6e-5}


@pytest.mark.parametrize("side", SIDES)
def test_prepare_pytorch_fid_equals_recorded_torch(side, recorded):
    got = torch_resize.kept(prepare("pytorch_fid", images(side)))
    np.testing.assert_allclose(got, recorded[f"pytorch_fid_{side}"], **INTERPOLATE)


@pytest.mark.parametrize("side", SIDES)
def test_prepare_pytorch_fid_equals_torch_interpolate(side):
    pytest.importorskip("torch")
    expected = torch_resize.interpolate(images(side))
    np.testing.assert_allclose(prepare("pytorch_fid", images(side)), expected, **INTERPOLATE)


@pytest.mark.parametrize("side", SIDES)
def test_prepare_clean_fid_equals_pillow(side):
    given = images(side)
    expected = np.empty((2, 299, 299, 3))
    for b in range(2):
        for c in range(3):
            channel = Image.fromarray(given[b, :, :, c].astype(np.float32))
            resized = np.asarray(channel.resize((299, 299), Image.Resampling.BICUBIC))
            expected[b, :, :, c] = resized.clip(0, 255)
    got = bytes_again("clean_fid", prepare("clean_fid", given))
    np.testing.assert_allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize("side", [32, 320])
def test_prepare_edm_equals_tensorflow_1(side):
    given = images(side)
    got = bytes_again("edm", prepare("edm", given))
    np.testing.assert_allclose(got[0], tensorflow1(given[0].astype(float)), atol=1e-3)


@pytest.mark.parametrize("side", SIDES)
def test_prepare_edm_equals_the_recorded_grid_of_torch(side, recorded):
    got = torch_resize.kept(bytes_again("edm", prepare("edm", images(side))))
    np.testing.assert_allclose(got, recorded[f"edm_{side}"], atol=1e-3)


def test_prepare_edm_equals_the_shifted_grid_of_torch():
    pytest.importorskip("torch")
    got = bytes_again("edm", prepare("edm", images(48)))
    np.testing.assert_allclose(got, torch_resize.shifted_grid(images(48)), atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    # Halves go to the even number, as torchvision's crop rounds: 1.5 and 2.5 both to 2.
    [(400, 403, 50, 52), (302, 304, 2, 2), (300, 299, 0, 0), (1024, 1025, 362, 363)],
)
def test_prepare_patch_cuts_the_centre(height, width, top, left):
    given = np.random.RandomState(0).randint(0, 256, (1, height, width, 3)).astype(np.uint8)
    got = prepare("patch", given)
    cut = given[:, top : top + 299, left : left + 299].astype(np.float32)
    np.testing.assert_allclose(got, (cut - 128) / 128, atol=1e-6)


@pytest.mark.parametrize("name", sorted(PREPARATIONS))
def test_prepare_repeats_grey(name):
    grey = images(320, channels=1)
    np.testing.assert_array_equal(prepare(name, grey), prepare(name, np.repeat(grey, 3, axis=-1)))


def test_preparations_differ():
    """The point of the names: the same picture, four inputs to the network."""
    given = images(320)
    prepared = [np.asarray(prepare(name, given)) for name in sorted(PREPARATIONS)]
    for i, one in enumerate(prepared):
        for other in prepared[:i]:
            assert np.abs(one - other).mean() > 0.01


@pytest.mark.parametrize("kind", ["half_pixel", "tensorflow1", "bicubic"])
@pytest.mark.parametrize("size", [1, 2, 31, 1024])
def test_resize_matrix_keeps_constants(kind, size):
    np.testing.assert_allclose(resize_matrix(kind, size, 299).sum(axis=1), 1.0, rtol=1e-12)


def test_prepare_refuses_an_unknown_name():
    with pytest.raises(ValueError, match=r"resize='area', expected one of .*pytorch_fid"):
        prepare("area", images(32))


def test_prepare_refuses_four_channels():
    with pytest.raises(ValueError, match=r"c = 1 or 3"):
        prepare("edm", images(32, channels=4))


def test_prepare_refuses_patches_of_small_images():
    with pytest.raises(ValueError, match="298 x 301 pixels, expected at least 299"):
        prepare("patch", images(298))
