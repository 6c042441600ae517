"""The list of a source's files: what tells one run's data from others."""

import os
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.data import ImageDataset, Options, image_folder
from dmd2_jax.data.reading.files import Files, files_of
from dmd2_jax.runtime.seal import digest
from tests.data.images import picture, png, write_folder, write_zip


def test_since_counts_and_names_what_changed() -> None:
    before = Files(("a", "b", "c", "d"), (1, 2, 3, 4), ("u", "v", "w", "x"))
    now = Files(("b", "c", "d", "e", "f", "g", "\x1b[2J"), (2, 9, 4, 1, 1, 1, 1), ("V",) * 7)
    assert now.since(before) == [
        "4 added (e, f, g and 1 more)",
        "1 gone (a)",
        "1 of another size (c)",
        "2 of the same size with other bytes (b, d)",
    ]
    assert before.since(before) == []
    assert before._replace(digests=()).since(before) == []  # bytes that nobody asked for


def test_files_of_looks_as_far_as_it_is_told() -> None:
    names = [f"{i}.png" for i in range(2500)]
    found = files_of(names, "contents", lambda i: i, lambda i: bytes([i % 251]))
    assert found is not None and found.sizes == tuple(range(2500))
    assert len(found.digests) == 2500 and len(set(found.digests)) == 251

    def never(i: int) -> bytes:
        raise AssertionError

    sizes = files_of(names, "sizes", lambda i: i, never)
    assert sizes is not None and sizes.by_content == "" and sizes.by_size == found.by_size
    assert files_of(names, "names", never, never) is None  # type: ignore[arg-type]


def test_folder_and_zip_of_it_are_the_same_files_until_one_is_written_anew(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": png(picture(i)) for i in range(3) for name in "ab"}
    folder, archive = write_folder(tmp_path / "x", files), write_zip(tmp_path / "y.zip", files)

    def listing(path: Path, how: str = "contents"):
        return image_folder.load(
            str(path), "train", 8, Options(test_fraction=0, digest=how)
        ).listing

    first = listing(folder)
    assert first == listing(archive) and first.sizes and first.contents
    assert listing(folder, "names") == first._replace(sizes="", contents="")
    file = folder / "a/1.png"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    now = listing(folder)
    assert (now.digest, now.sizes) == (first.digest, first.sizes) and now.contents != first.contents
    file.write_bytes(bytes(content) + b"\0")
    assert listing(folder, "sizes").sizes != first.sizes


def test_pixels_in_memory_are_digested_and_mapped_files_are_not(tmp_path: Path) -> None:
    labels = np.zeros(2, np.int32)
    images = np.zeros((2, 2, 2, 1), np.uint8)
    first = ImageDataset(images, labels, 1, "x").listing
    other = ImageDataset(images + np.uint8(1), labels, 1, "x").listing
    assert first.digest == other.digest and first.contents != other.contents != ""
    mapped = np.memmap(tmp_path / "x", np.uint8, "w+", shape=images.shape)
    assert ImageDataset(mapped, labels, 1, "x").listing.contents == ""


def test_a_file_that_is_gone_is_an_error_of_the_disk(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", {f"{i}.png": png(picture(i)) for i in range(2)})
    source = image_folder.load(str(folder), "all", 8)
    os.unlink(folder / "0.png")
    with pytest.raises(FileNotFoundError, match=r"0\.png"):
        _ = source.listing


def test_a_damaged_member_of_a_zip_is_as_good_as_empty(tmp_path: Path) -> None:
    files = {f"{i}.png": png(picture(i)) for i in range(2)}
    archive = write_zip(tmp_path / "x.zip", files)
    content = archive.read_bytes()
    at = content.index(files["1.png"][-20:])
    archive.write_bytes(content[:at] + b"\0" + content[at + 1 :])
    found = image_folder.load(str(archive), "all", 8, Options(digest="contents")).files
    assert found is not None and found.sizes == tuple(map(len, files.values()))
    assert found.digests == (digest(files["0.png"]), digest(b""))
