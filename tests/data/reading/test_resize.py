"""Images of other sizes than the config's: cut out, made smaller by Lanczos' filter, or refused."""

from pathlib import Path

import numpy as np
import pytest

from dmd2_jax import data
from dmd2_jax.config import defaults
from dmd2_jax.config.load import apply_overrides
from dmd2_jax.data.reading.decode import ImageRefusedError, decode_image
from dmd2_jax.data.reading.resize import crop_to, size_fault
from tests.data.images import picture, png, write_folder, write_zip
from tests.data.test_idx import content

EXACT = 1  # of 255: Pillow's coefficients have 22 bits, and each of two passes rounds


def test_crop_covers_a_size_that_is_not_square_and_keeps_its_middle():
    image = np.zeros((10, 20, 3), np.uint8)
    made = crop_to(image, (6, 9))  # 6 x 12 resized, whose columns 1..9 are kept
    assert (made.pixels.shape, made.original, made.corner) == ((6, 9, 3), (10, 20), (0, 1))
    made = crop_to(image, (4, 10))  # 5 x 10 resized, whose rows 0..3 are kept
    assert (made.pixels.shape, made.corner) == ((4, 10, 3), (0, 0))


def test_crop_to_keeps_the_middle() -> None:
    image = np.zeros((4, 10, 3), np.uint8)
    image[:, 3:7] = 9
    made = crop_to(image, 4)
    assert (made.pixels == 9).all()
    assert (made.original, made.corner) == ((4, 10), (0, 3))


def test_crop_to_scales_the_shorter_side() -> None:
    # 20 x 12 halved is 10 x 6, of which the rows 2 to 7 are the middle ones
    made = crop_to(np.full((20, 12, 3), 77, np.uint8), 6)
    assert made.pixels.shape == (6, 6, 3) and (made.pixels == 77).all()
    assert (made.original, made.corner) == ((20, 12), (2, 0))


def lanczos(length: int, onto: int) -> np.ndarray:
    """[onto, length] weights of Pillow's documented filter: sinc(x) sinc(x / 3), |x| < 3, which
    widens with the step down."""
    step = max(length / onto, 1.0)
    centres = (np.arange(onto) + 0.5) * length / onto
    x = (np.arange(length) + 0.5 - centres[:, None]) / step
    weights = np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("side", [8, 32])  # made smaller, and larger
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_to_is_lanczos_filter_with_antialiasing(side: int, channels: int) -> None:
    rows, columns = np.mgrid[0:24, 0:20]
    image = 128 + 60 * np.sin(rows / 2.5 + np.arange(channels)[:, None, None]) * np.cos(columns / 2)
    image = np.round(image).astype(np.uint8).transpose(1, 2, 0)
    tall = round(24 * side / 20)
    # Pillow goes along the rows first, and rounds to bytes between.
    wide = np.clip(np.round(np.einsum("xw,hwc->hxc", lanczos(20, side), image)), 0, 255)
    both = np.clip(np.round(np.einsum("yh,hxc->yxc", lanczos(24, tall), wide)), 0, 255)
    top = (tall - side) // 2
    got = crop_to(image, side).pixels.astype(int)
    assert abs(got - both[top : top + side]).max() <= EXACT
    # A filter that does not widen with the step down is far from it.
    assert side == 32 or abs(got - image[::3, ::2][:side, :side].astype(int)).max() > 20 * EXACT


def test_decode_image_crops_what_is_larger_and_refuses_what_is_smaller() -> None:
    image = picture(0, side=9)
    got = decode_image(png(image), "x.png", 8, "crop")
    np.testing.assert_array_equal(got, crop_to(image, 8).pixels)
    with pytest.raises(ImageRefusedError, match=r"x\.png is 9 x 9 pixels, expected at least 10"):
        decode_image(png(image), "x.png", 10, "crop")
    assert decode_image(png(image), "x.png", 10, "enlarge").shape == (10, 10, 3)


def test_decode_image_with_crop_leaves_what_fits_as_it_is() -> None:
    image = picture(0, side=8, channels=1)
    np.testing.assert_array_equal(decode_image(png(image), "x.png", 8, "crop"), image)


def mixed(channels: int = 3) -> dict[str, bytes]:
    sizes = {"a/0": (9, 12), "a/1": (16, 8), "b/0": (8, 8), "b/1": (24, 24)}
    images = {
        name: np.random.RandomState(i).randint(0, 256, (*size, channels)).astype(np.uint8)
        for i, (name, size) in enumerate(sizes.items())
    }
    return {f"{name}.png": png(image) for name, image in images.items()}


def opened(name: str, path: Path, resolution: int, resize: str) -> data.Source:
    config = defaults.get_config().data
    config.name, config.path, config.resize = name, str(path), resize
    return data.load(config, "all", resolution)


@pytest.mark.parametrize("write", [write_folder, write_zip])
@pytest.mark.parametrize("channels", [1, 3])
def test_load_reads_a_folder_of_sizes_that_differ(tmp_path: Path, write, channels: int) -> None:
    files = mixed(channels)
    source = opened("image_folder", write(tmp_path / "x.zip", files), 8, "crop")
    batch = source.examples(np.arange(4))
    assert batch["image"].shape == (4, 8, 8, channels) and source.resolution == 8
    for pixels, png_file in zip(batch["image"], files.values(), strict=True):
        np.testing.assert_array_equal(pixels, crop_to(decode_image(png_file, "", None), 8).pixels)
    sizes = source.sizes(np.arange(4))
    assert sizes is not None and sizes.tolist() == [[9, 12], [16, 8], [8, 8], [24, 24]]


def test_load_refuses_sizes_that_differ_as_it_did_and_names_the_remedy(tmp_path: Path) -> None:
    path = write_folder(tmp_path, mixed())
    with pytest.raises(ImageRefusedError, match=r"12 x 9 pixels, expected 8 x 8.*resize=crop"):
        opened("image_folder", path, 8, "none")


def test_remedy_for_a_size_is_the_one_that_works() -> None:
    assert "config.data.resize=crop" in size_fault((20, 16), 12, "none")
    assert "config.data.resize=enlarge" in size_fault((20, 10), 12, "none")
    assert size_fault((20, 10), 12, "enlarge") == size_fault((20, 16), 12, "crop") == ""


def test_load_resizes_arrays_of_one_size(tmp_path: Path) -> None:
    images = np.stack([picture(i, side=12) for i in range(3)])
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([0, 1, 1]))
    source = opened("arrays", tmp_path / "x.npz", 8, "crop")
    batch = source.examples(np.array([2, 0]))
    expected = [crop_to(images[i], 8).pixels for i in (2, 0)]
    np.testing.assert_array_equal(batch["image"], expected)
    assert batch["label"].tolist() == [1, 0]
    assert (source.num_classes, len(source), source.channels) == (2, 3, 3)
    assert data.to_memory(source).images.shape == (3, 8, 8, 3)
    with pytest.raises(ValueError, match="12 x 12 pixels, expected at least 16"):
        opened("arrays", tmp_path / "x.npz", 16, "crop")


def test_load_makes_idx_smaller_and_still_pads_it(tmp_path: Path) -> None:
    images = np.stack([picture(i, side=12, channels=1)[..., 0] for i in range(3)])
    for kind, array in (("images-idx3", images), ("labels-idx1", np.zeros(3, np.uint8))):
        (tmp_path / f"train-{kind}-ubyte").write_bytes(content(array))
    got = opened("idx", tmp_path, 8, "crop").examples(np.arange(3))["image"]
    np.testing.assert_array_equal(got, [crop_to(x[..., None], 8).pixels for x in images])
    padded = opened("idx", tmp_path, 14, "crop").examples(np.arange(3))["image"]
    np.testing.assert_array_equal(padded[:, 1:13, 1:13, 0], images)


def test_load_makes_digits_of_another_size() -> None:
    config = defaults.get_config()
    apply_overrides(config, {"data.resize": "enlarge"})
    source, small = (data.load(config.data, "test", side) for side in (16, 8))
    assert len(source) == len(small) and source.resolution == 16
    first = small.examples(np.array([5]))["image"][0]
    np.testing.assert_array_equal(
        source.examples(np.array([5]))["image"][0], crop_to(first, 16).pixels
    )
