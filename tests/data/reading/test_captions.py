"""Captioned images: both layouts, in folders and zips, cropping, and what is refused."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.data.reading.captions import open_captions
from dmd2_jax.data.reading.decode import CorruptImageError, ImageRefusedError
from tests.data.images import picture, png, write_folder, write_zip

WRITERS = {"folder": write_folder, "zip": write_zip}


def metadata(entries: Mapping[str, str]) -> bytes:
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in entries.items()]
    return "\n".join(lines).encode()


IMAGES = {"b.png": png(picture(1)), "a/c.jpg": png(picture(2))}
TABLE = {**IMAGES, "metadata.jsonl": metadata({"b.png": "a bee", "a/c.jpg": " a sea\n"})}
SIDECARS = {**IMAGES, "b.txt": b"a bee\n", "a/c.txt": b"a\nsea"}


CSV = {**IMAGES, "metadata.csv": b'id,file_name,text\r\n1,./b.png,a bee\r\n2,a\\c.jpg,"a sea"\r\n'}
MIXED = {**IMAGES, "b.txt": b"a bee\n", "a/c.caption": "a sea".encode("utf-8-sig")}
WINDOWS = {**IMAGES, "b.txt": "a bee\r\n".encode("utf-16"), "a/c.txt": b"\xef\xbb\xbfa sea"}


@pytest.mark.parametrize(
    "files",
    [TABLE, SIDECARS, CSV, MIXED, WINDOWS],
    ids=["metadata", "sidecars", "csv", "captions", "windows"],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_open_captions_pairs_images_with_captions(
    kind: str, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    captioned = open_captions(WRITERS[kind](tmp_path / "x.zip", files))
    assert captioned.names == ("a/c.jpg", "b.png")
    assert captioned.captions == ("a sea", "a bee")
    np.testing.assert_array_equal(captioned.picture(1, 8).pixels, picture(1))


def test_open_captions_reads_metadata_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["a bee", "a sea"], "file_name": ["b.png", "a/c.jpg"]})
    write_folder(tmp_path, IMAGES)
    parquet.write_table(table, tmp_path / "metadata.parquet")
    assert open_captions(tmp_path).captions == ("a sea", "a bee")
    packed = {name: (tmp_path / name).read_bytes() for name in (*IMAGES, "metadata.parquet")}
    assert open_captions(write_zip(tmp_path / "x.zip", packed)).captions == ("a sea", "a bee")


def test_open_captions_says_which_texts_it_does_not_read_and_what_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {**TABLE, "b.txt": b"another bee", "d.heic": b""}
    assert open_captions(write_folder(tmp_path, files)).captions == ("a sea", "a bee")
    assert "1 texts beside images are not read (b.txt), as there is metadata.jsonl" in caplog.text
    assert "left out 1: 1 .heic; read are images (.png, " in caplog.text


def test_open_captions_reads_names_below_the_metadatas_folder(tmp_path: Path) -> None:
    files = {"train/x.png": png(picture(0)), "train/metadata.jsonl": metadata({"x.png": "an ex"})}
    captioned = open_captions(write_folder(tmp_path, files))
    assert (captioned.names, captioned.captions) == (("train/x.png",), ("an ex",))


def test_open_captions_leaves_other_texts_alone_beside_metadata(tmp_path: Path) -> None:
    captioned = open_captions(write_folder(tmp_path, {**TABLE, "LICENSE.txt": b"free"}))
    assert len(captioned.captions) == 2


@pytest.mark.parametrize(
    "files, message",
    [
        ({**TABLE, "d.png": b""}, r"1 images without a caption \(d\.png\), expected an entry in"),
        ({**SIDECARS, "d.png": b""}, r"1 images without a caption \(d\.png\), expected a \.txt"),
        ({**SIDECARS, "b.txt": b" \n"}, r"1 images without a caption \(b\.png\)"),
        ({**SIDECARS, "d.txt": b"d"}, r"captions of 1 images that are not there \(d\.txt\)"),
        (
            {**IMAGES, "metadata.jsonl": metadata({"../x.png": "x"})},
            r"captions of 1 images that are not there \(\.\./x\.png\)",
        ),
        ({**SIDECARS, "b.txt": b"\xff"}, r"b\.txt is not UTF-8"),
        ({**IMAGES, "metadata.jsonl": b"{}\n"}, r"metadata\.jsonl line 1 has file_name = None"),
        ({**IMAGES, "metadata.jsonl": b"\nno\n"}, r"metadata\.jsonl line 2 is no JSON"),
        (
            {**IMAGES, "metadata.jsonl": b'{"file_name": "b.png"}'},
            r"line 1 has \['file_name'\], expected one of \['prompt'",
        ),
        (
            {
                **IMAGES,
                "metadata.jsonl": metadata({"b.png": "x"}) + b"\n" + TABLE["metadata.jsonl"],
            },
            r"line 2 names 'b\.png' a second time",
        ),
        ({"b.txt": b"x"}, "has no images, expected files ending in"),
        ({**SIDECARS, "b.txt": b"a\0b\0"}, r"b\.txt has a NUL character.*utf-16le"),
        ({**SIDECARS, "b.caption": b"x"}, r"b\.txt is a second caption of b\.png"),
        (
            {**IMAGES, "metadata.jsonl": b'{"file_name": "b.png", "text": "\\u0000"}'},
            r"line 1 has the character U\+0000",
        ),
        (
            {**IMAGES, "metadata.jsonl": b'{"file_name": "b.png", "text": "\\ud800"}'},
            r"line 1 has the character U\+D800",
        ),
        ({**IMAGES, "metadata.csv": b"file_name;text\n"}, r"has the columns \['file_name;text'\]"),
        (
            {**IMAGES, "metadata.csv": b"file_name,text\nb.png,a bee, a wasp\n"},
            r"metadata\.csv line 2 has 3 values, expected 2 \(file_name,text\)",
        ),
        ({**IMAGES, "metadata.csv": b'file_name,text\nb.png,"a'}, r"line 2 is no CSV"),
        ({**TABLE, **CSV}, r"names 'b\.png' a second time|names '\./b\.png' a second time"),
        ({**IMAGES, "metadata.parquet": b"PAR1"}, r"metadata\.parquet cannot be read"),
    ],
)
def test_open_captions_refuses(files: Mapping[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_captions(write_folder(tmp_path, files))


def test_open_captions_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder or zip of images with captions"):
        open_captions(tmp_path / "absent")


def one(tmp_path: Path, content: bytes):
    return open_captions(write_folder(tmp_path, {"x.png": content, "x.txt": b"x"}))


def test_picture_names_what_cannot_be_decoded(tmp_path: Path) -> None:
    with pytest.raises(CorruptImageError, match=r"no image of a kind that is read \(PNG, JPEG, "):
        one(tmp_path, b"no image").picture(0, 8)


def test_picture_refuses_a_smaller_image(tmp_path: Path) -> None:
    with pytest.raises(ImageRefusedError, match=r"x\.png is 8 pixels high and 8 wide, expected at"):
        one(tmp_path, png(picture(0))).picture(0, 16)


def test_picture_enlarges_where_it_is_allowed(tmp_path: Path) -> None:
    made = one(tmp_path, png(picture(0))).picture(0, 16, enlarge=True)
    assert (made.pixels.shape, made.original) == ((16, 16, 3), (8, 8))


def test_picture_gives_grey_images_three_channels(tmp_path: Path) -> None:
    grey = picture(0, channels=1)
    made = one(tmp_path, png(grey)).picture(0, 8)
    np.testing.assert_array_equal(made.pixels, np.repeat(grey, 3, axis=-1))


def test_picture_turns_photographs_as_the_camera_says(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", exif=exif)
    made = one(tmp_path, buffer.getvalue()).picture(0, 16)
    assert made.pixels[:7].max() < 20 and made.pixels[9:].min() > 235
