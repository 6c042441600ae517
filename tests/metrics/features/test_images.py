"""Folders and zips of images to evaluate: read in order, and refused by name."""

import io
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dmd2_jax import metrics
from dmd2_jax.metrics.features.extractor import Extractor, collect
from dmd2_jax.metrics.features.images import check_comparable, image_batches, open_images
from tests.data.images import edm_files, encoded, picture, png, write_folder, write_zip


def files(count, side=8):
    return {f"img{i:02d}.png": png(picture(i, side)) for i in range(count)}


@pytest.fixture(params=["folder", "zip"])
def place(request, tmp_path):
    """Writes files as a folder or as a zip."""
    if request.param == "folder":
        return lambda contents: write_folder(tmp_path / "made", contents)
    return lambda contents: write_zip(tmp_path / "made.zip", contents)


def test_image_batches_go_through_all_images_once(place):
    source = open_images(place(files(7)))
    batches = list(image_batches(source, 3))
    assert [len(batch["image"]) for batch in batches] == [3, 3, 1]
    expected = np.stack([picture(i) for i in range(7)])
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in batches]), expected)


def test_image_batches_stop_at_the_limit(place):
    batches = list(image_batches(open_images(place(files(7))), 3, limit=5))
    assert [len(batch["image"]) for batch in batches] == [3, 2]


def test_open_images_takes_the_classes_of_edm_s_layout(place):
    source = open_images(place(edm_files([2, 0, 1, 2, 0])))
    (batch,) = image_batches(source, 10)
    np.testing.assert_array_equal(batch["label"], [2, 0, 1, 2, 0])


def test_open_images_reads_every_kind_and_says_what_it_leaves_out(place, caplog):
    kinds = ("png", "webp", "gif", "bmp", "tiff")
    contents = {f"{i}.{kind}": encoded(picture(i), kind) for i, kind in enumerate(kinds)}
    (batch,) = image_batches(open_images(place(contents | {"5.heic": b"", "6.mp4": b""})), 10)
    np.testing.assert_array_equal(batch["image"], [picture(i) for i in range(5)])
    assert "left out 2: 1 .heic, 1 .mp4; read are files ending in .png" in caplog.text


def test_open_images_names_what_there_is_instead_of_images(place):
    with pytest.raises(ValueError, match=r"ending in \.png, .* \(but 2 \.heic\), expected at"):
        open_images(place({"1.heic": b"", "2.heic": b""}))


def test_open_images_describes_a_number_by_its_file(place):
    assert open_images(place(files(3))).describe(2).endswith("/img02.png")


def test_open_images_refuses_an_empty_folder(place):
    with pytest.raises(ValueError, match=r"made.* has no file ending in \.png"):
        open_images(place({"notes.txt": b"nothing here"}))


def test_open_images_refuses_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' do not exist"):
        open_images(tmp_path / "nowhere")


def refusal(path, caplog):
    """Read all images, which must fail, and return the message; nothing else may be said."""
    with pytest.raises(ValueError) as caught:
        list(image_batches(open_images(path), 100))
    message = str(caught.value)
    for word in ("config.data", "BytesIO", "takes its place"):
        assert word not in message + caplog.text
    return message


@pytest.mark.parametrize("number", [0, 1])
def test_an_unreadable_image_is_named(place, number, caplog):
    broken = files(2) | {f"img{number:02d}.png": b"no image"}
    message = refusal(place(broken), caplog)
    assert f"img0{number}.png" in message and "cannot identify image file" in message


def test_a_truncated_image_is_named(place, caplog):
    contents = files(40)  # beyond those that opening looks at
    contents["img38.png"] = contents["img38.png"][:80]
    message = refusal(place(contents), caplog)
    assert "img38.png" in message and "expected sound images, as every image of" in message


def test_an_image_of_another_size_is_named(tmp_path, caplog):
    for number in (1, 68):  # opening looks at the last one but one, not at the second
        contents = files(70) | {f"img{number:02d}.png": png(picture(1, 9))}
        message = refusal(write_folder(tmp_path / str(number), contents), caplog)
        assert f"img{number:02d}.png is 9 x 9 pixels, expected" in message
        assert "its first, which is 8 x 8; prepare them alike" in message


def test_an_image_of_another_kind_is_named(tmp_path, caplog):
    grey = files(3) | {"img01.png": png(picture(1), "L")}
    list(image_batches(open_images(write_folder(tmp_path / "sound", grey)), 3))
    clear = Image.fromarray(picture(1, channels=4))
    buffer = io.BytesIO()
    clear.save(buffer, format="PNG")
    path = write_folder(tmp_path / "made", files(3) | {"img01.png": buffer.getvalue()})
    message = refusal(path, caplog)
    assert "img01.png has transparent pixels, expected opaque 8-bit grey or RGB of 8 x 8" in message


def test_a_folder_of_headers_alone_is_refused(tmp_path, caplog):
    cut = {name: content[:50] for name, content in files(3).items()}
    path = write_folder(tmp_path / "made", cut)
    assert f"none of the images of {path} can be read" in refusal(path, caplog)


def test_warnings_of_other_readers_are_heard_again(tmp_path, caplog):
    """What silences the reader here does not stay: training's data have the same one."""
    refusal(write_folder(tmp_path / "made", files(2) | {"img01.png": b"no image"}), caplog)
    logging.getLogger("dmd2_jax.data.reading.source").warning("corrupt")
    assert "corrupt" in caplog.text


def test_figures_of_files_are_those_of_their_pixels(place):
    """The whole way: files, batches that do not divide them, features, several metrics at once."""
    shapes = jnp.asarray(np.random.RandomState(1).standard_normal((8 * 8 * 3, 5)), jnp.float32)

    def apply(params, images):
        return images.reshape(len(images), -1).astype(jnp.float32) @ params, None

    network = Extractor("random/none", 5, apply, shapes, batch_size=16)
    names = ["fid", "kid", "precision_recall", "diversity"]
    needs = metrics.needs(names)
    labels = [i % 3 for i in range(40)]
    source = open_images(place(edm_files(labels)))
    fake = collect(network, image_batches(source, 11), needs.fake, source.describe)
    pixels = np.stack([picture(i) for i in range(40)])
    arrays = collect(network, [{"image": pixels, "label": np.array(labels)}], needs.fake)
    real = collect(network, [{"image": 255 - pixels[::2]}], needs.real)
    got, expected = (metrics.compute(names, real, side) for side in (fake, arrays))
    assert got == pytest.approx(expected, rel=1e-6)
    assert got["fid"] > 0 and got["diversity"] > 0


def test_check_comparable_refuses_another_resolution(tmp_path):
    real, fake = (
        open_images(write_folder(tmp_path / name, files(2, side)))
        for name, side in (("real", 8), ("fake", 16))
    )
    with pytest.raises(ValueError, match=r"fake has images of .*\(16, 16, 3\), expected \(8, 8, 3"):
        check_comparable(real, fake)
    check_comparable(real, real)


def test_check_comparable_refuses_grey_against_colour(tmp_path):
    grey = {"a.png": png(picture(0, 8, 1))}
    real, fake = (
        open_images(write_folder(tmp_path / name, contents))
        for name, contents in (("real", files(1)), ("fake", grey))
    )
    with pytest.raises(ValueError, match=r"\(8, 8, 1\), expected \(8, 8, 3\)"):
        check_comparable(real, fake)
