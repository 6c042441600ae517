"""Folders and zips of images in every layout, and what is wrong with some."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.data import Options, image_folder
from dmd2_jax.data.reading.decode import ImageRefusedError
from dmd2_jax.data.reading.source import CorruptDataError
from tests.data.images import edm_files, encoded, picture, png, write_folder, write_zip

CLASSES = [0, 1, 2, 0, 1, 2, 0, 1, 2, 3]

Write = Callable[[Path, Mapping[str, bytes]], Path]


def as_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    return write_zip(path.with_suffix(".zip"), files)


BOTH = pytest.mark.parametrize("write", [write_folder, as_zip])


def opened(path: Path, split: str = "all", **options: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Every image and label of a split, and the number of classes."""
    source = image_folder.load(str(path), split, 8, Options(**options))
    batch = source.examples(np.arange(len(source)))
    return batch["image"], batch["label"], source.num_classes


@BOTH
def test_load_reads_edms_layout(tmp_path: Path, write: Write) -> None:
    images, labels, classes = opened(write(tmp_path / "x", edm_files(CLASSES)))
    np.testing.assert_array_equal(images, [picture(i) for i in range(10)])
    np.testing.assert_array_equal(labels, CLASSES)
    assert classes == 4


def test_load_reads_edms_layout_without_labels(tmp_path: Path) -> None:
    files = edm_files(CLASSES) | {"dataset.json": b'{"labels": null}'}
    _, labels, classes = opened(write_folder(tmp_path, files))
    assert (set(labels.tolist()), classes) == ({0}, 1)


@BOTH
def test_load_numbers_the_folders_of_classes_by_name(tmp_path: Path, write: Write) -> None:
    files = {
        "dog/b.png": png(picture(2)),
        "cat/deeper/c.PNG": png(picture(1)),
        "ant/a.png": png(picture(0)),
        "readme.txt": b"about",
    }
    images, labels, classes = opened(write(tmp_path / "x", files))
    np.testing.assert_array_equal(labels, [0, 1, 2])
    np.testing.assert_array_equal(images, [picture(i) for i in range(3)])
    assert classes == 3


def test_load_counts_folders_that_are_whole_numbers_by_value(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{k}/x.png": png(picture(k)) for k in range(12)})
    images, labels, _ = opened(tmp_path)
    assert labels.tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(images, [picture(label) for label in labels])
    source = image_folder.load(str(tmp_path), "all", 8)
    assert source.class_names == tuple(map(str, range(12)))
    assert source.formerly == "by spelling: 0, 1, 10, 11, ..."


def test_load_numbers_other_folders_as_ever(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{k:02}/x.png": png(picture(k)) for k in range(12)})
    assert opened(tmp_path)[1].tolist() == list(range(12))
    assert image_folder.load(str(tmp_path), "all", 8).formerly == ""


def test_listing_is_of_names_classes_and_order(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": png(picture(i)) for i in range(4) for name in "ab"}

    def digest(path: Path) -> str:
        listing = image_folder.load(str(path), "train", 8, Options(test_fraction=0.25)).listing
        assert listing is not None and sum(listing.counts) in (6, 7)
        return listing.digest

    folder = write_folder(tmp_path / "x", files)
    first = digest(folder)
    assert digest(write_zip(tmp_path / "y.zip", {f"y/{n}": b for n, b in files.items()})) == first
    (folder / "b").rename(folder / "c")
    assert digest(folder) != first
    (folder / "c").rename(folder / "b")
    assert digest(folder) == first
    (folder / "a/0.png").rename(folder / "a/9.png")
    assert digest(folder) != first


def test_edms_numbers_have_no_names(tmp_path: Path) -> None:
    source = image_folder.load(str(write_folder(tmp_path, edm_files(CLASSES))), "all", 8)
    assert source.class_names is None
    assert source.listing is not None and source.listing.counts == (3, 3, 3, 1)


@pytest.mark.parametrize("name", ["dataset.json", "00000/img00000000.png"])
def test_load_does_not_wait_for_a_pipe(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "x", edm_files([0, 1]))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match="is a pipe or a device, expected a file"):
        opened(folder)


@BOTH
def test_load_images_without_folders_are_one_class(tmp_path: Path, write: Write) -> None:
    files = {f"{i}.png": png(picture(i)) for i in range(3)}
    _, labels, classes = opened(write(tmp_path / "x", files))
    assert (labels.tolist(), classes) == ([0, 0, 0], 1)


def test_load_looks_into_the_one_folder_around_all(tmp_path: Path) -> None:
    files = {f"data/set/{kind}/1.png": png(picture(i)) for i, kind in enumerate("ab")}
    assert opened(write_zip(tmp_path / "x.zip", files))[1].tolist() == [0, 1]


@pytest.mark.parametrize("test", ["test", "val"])
@BOTH
def test_load_takes_the_splits_from_their_folders(tmp_path: Path, test: str, write: Write) -> None:
    files = {
        "train/b/1.png": png(picture(1)),
        "train/c/2.png": png(picture(2)),
        f"{test}/a/3.png": png(picture(3)),  # a class that train does not have
    }
    path = write(tmp_path / "x", files)
    (image,), (label,), classes = opened(path, "test")
    np.testing.assert_array_equal(image, picture(3))
    assert (label, classes) == (0, 3)
    assert opened(path, "train")[1].tolist() == [1, 2]
    assert opened(path, "all")[1].tolist() == [1, 2, 0]


def test_load_takes_the_splits_from_their_zips(tmp_path: Path) -> None:
    write_zip(tmp_path / "train.zip", edm_files([0, 1, 2]))
    write_zip(tmp_path / "val.zip", edm_files([4]))
    assert opened(tmp_path, "train")[1:][0].tolist() == [0, 1, 2]
    assert opened(tmp_path, "test")[1].tolist() == [4]
    assert opened(tmp_path, "train")[2] == 5


def test_load_holds_out_the_same_share_of_every_class_where_there_is_no_test(
    tmp_path: Path,
) -> None:
    classes = [0] * 20 + [1] * 10
    path = write_zip(tmp_path / "x.zip", edm_files(classes))
    train, test = (opened(path, split, test_fraction=0.3) for split in ("train", "test"))
    assert np.bincount(test[1]).tolist() == [6, 3]
    assert np.bincount(train[1]).tolist() == [14, 7]
    together = {image.tobytes() for image in (*train[0], *test[0])}
    assert together == {picture(i).tobytes() for i in range(30)}
    np.testing.assert_array_equal(test[0], opened(path, "test", test_fraction=0.3)[0])


def test_load_replaces_corrupt_images_and_names_them_beyond_the_limit(tmp_path: Path) -> None:
    files = edm_files(CLASSES)
    for i in (2, 5):
        files[f"{i // 4:05d}/img{i:08d}.png"] = b"no png"
    path = write_zip(tmp_path / "x.zip", files)
    images, labels, _ = opened(path)
    np.testing.assert_array_equal(images[[2, 5]], [picture(3), picture(6)])
    assert labels[[2, 5]].tolist() == [CLASSES[3], CLASSES[6]]
    with pytest.raises(CorruptDataError, match=r"x\.zip/00000/img00000002\.png"):
        opened(path, max_corrupt=1)


def test_load_refuses_an_image_of_another_size_by_name(tmp_path: Path) -> None:
    files = {"a/1.png": png(picture(0)), "a/2.png": png(picture(0, side=9))}
    with pytest.raises(ImageRefusedError, match=r"a/2\.png is 9 x 9 pixels, expected 8 x 8"):
        opened(write_folder(tmp_path, files))


def test_load_makes_grey_images_among_colour_ones_colour(tmp_path: Path) -> None:
    grey = picture(0, channels=1)
    files = {"a/1.png": png(grey), "a/2.png": png(picture(1))}
    images = opened(write_folder(tmp_path, files))[0]
    np.testing.assert_array_equal(images[0], np.repeat(grey, 3, axis=-1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "no list of labels"),
        ('{"labels": {}}', "no list of labels"),
        ('{"labels": [3]}', "has the entry 3"),
        ('{"labels": [["00000/img00000000.png", true]]}', "has the entry"),
        ('{"labels": [["00000/img00000000.png", [0, 1]]]}', "has the entry"),
        ('{"labels": [["00000/img00000000.png", -1]]}', "has class -1"),
        ('{"labels": [["00000/img00000000.png", 1000000000]]}', "has class 1000000000"),
        ('{"labels": []}', "no label for 2 images"),
    ],
)
def test_load_refuses_a_dataset_json_of_the_wrong_form(
    tmp_path: Path, text: str, message: str
) -> None:
    files = edm_files([0, 1]) | {"dataset.json": text.encode()}
    with pytest.raises(ValueError, match=rf"dataset\.json.*{message}"):
        opened(write_folder(tmp_path, files))


def test_load_refuses_a_damaged_dataset_json_in_a_zip(tmp_path: Path) -> None:
    files = edm_files([0, 1])
    path = write_zip(tmp_path / "x.zip", files)
    damaged = files["dataset.json"].replace(b"img", b"jmg")
    path.write_bytes(path.read_bytes().replace(files["dataset.json"], damaged))
    with pytest.raises(ValueError, match=r"dataset\.json cannot be read \(CorruptImageError"):
        opened(path)


def test_load_refuses_labels_of_absent_files(tmp_path: Path) -> None:
    files = edm_files([0, 1])
    labels = json.loads(files["dataset.json"])
    labels["labels"].append(["../../secret.png", 0])
    files["dataset.json"] = json.dumps(labels).encode()
    with pytest.raises(ValueError, match=r"labels for 1 absent files \(../../secret\.png\)"):
        opened(write_folder(tmp_path, files))


def test_load_refuses_images_beside_folders_of_classes(tmp_path: Path) -> None:
    files = {"a/1.png": png(picture(0)), "2.png": png(picture(0))}
    with pytest.raises(ValueError, match=r"images beside folders \(.*2\.png\)"):
        opened(write_folder(tmp_path, files))


def test_load_refuses_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has no images \(but 1 \.txt\), expected files ending in \.png"
    ):
        opened(write_folder(tmp_path, {"a/readme.txt": b""}))


def test_load_refuses_a_place_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        opened(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.data\.path is empty"):
        image_folder.load("")
    with pytest.raises(ValueError, match="is one image, expected a folder or zip of images; give"):
        opened(write_folder(tmp_path, {"a/1.png": b""}) / "a" / "1.png")


@BOTH
def test_load_reads_every_kind_of_image_and_says_once_what_it_leaves_out(
    tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = ("bmp", "gif", "png", "tiff", "webp")
    files = {f"a/{i}.{kind}": encoded(picture(i), kind) for i, kind in enumerate(kinds)}
    others = {"a/5.heic": b"", "a/6.HEIC": b"", "a/notes.txt": b"", "list": b"", ".DS_Store": b""}
    path = write(tmp_path / "x", files | others)
    for split in ("train", "all", "all"):
        images = opened(path, split, test_fraction=0)[0]
    np.testing.assert_array_equal(images, [picture(i) for i in range(5)])
    (said,) = [record.getMessage() for record in caplog.records]
    assert "left out 4: 2 .heic, 1 .txt, 1 without an ending; read are files ending in .png" in said


def test_load_says_that_links_to_folders_and_further_splits_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("train/a/1.png", "val/a/2.png", "test/a/3.png")
    path = write_folder(tmp_path / "x", {n: png(picture(i)) for i, n in enumerate(names)})
    (path / "train" / "c").mkdir()
    (path / "train" / "b").symlink_to(write_folder(tmp_path / "b", {"4.png": png(picture(4))}))
    assert len(opened(path)[0]) == 2
    assert "left out 2: 1 empty folders, which are no classes, 1 links to folders, which are" in (
        caplog.text
    )
    assert "left out val: the test split is test" in caplog.text


def test_links_to_images_are_followed_and_listed_as_what_they_lead_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_folder(tmp_path / "x", {f"a/{i}.png": png(picture(i)) for i in range(2)})
    elsewhere = write_folder(tmp_path / "elsewhere", {"2.png": png(picture(2))})
    (path / "a" / "2.png").symlink_to(elsewhere / "2.png")
    plain = write_folder(tmp_path / "plain", {f"a/{i}.png": png(picture(i)) for i in range(3)})
    linked, whole = (
        image_folder.load(str(it), "all", 8, Options(digest="contents")).listing
        for it in (path, plain)
    )
    assert linked == whole
    assert "1 of 3 files are links, which are followed wherever they lead; a/2.png leads to" in (
        caplog.text
    )
    (elsewhere / "2.png").write_bytes(png(picture(3)) + b"more")
    changed = image_folder.load(str(path), "all", 8, Options(digest="contents")).listing
    assert changed.digest == linked.digest
    assert changed.sizes != linked.sizes and changed.contents != linked.contents


def test_load_turns_photographs_as_the_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood on its side
    upright = picture(0)
    lying = np.rot90(upright)
    path = write_folder(tmp_path, {"a/1.png": encoded(lying, "png", exif=exif)})
    np.testing.assert_array_equal(opened(path)[0], [upright])


def test_load_reads_a_dataset_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    files = edm_files([0, 1])
    files["dataset.json"] = files["dataset.json"].decode().encode("utf-16")
    assert opened(write_folder(tmp_path, files))[1].tolist() == [0, 1]
