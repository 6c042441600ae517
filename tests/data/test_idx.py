"""IDX files of any size and name; their damage is tested with Fashion-MNIST's."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.data import Options, idx

IMAGES = np.random.RandomState(0).randint(0, 256, (12, 6, 6)).astype(np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 3


def content(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write(folder: Path, images: str, labels: str, count: int = 12) -> None:
    (folder / images).write_bytes(content(IMAGES[:count]))
    (folder / labels).write_bytes(gzip.compress(content(LABELS[:count])))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte.gz"),
        ("emnist-letters-train-images-idx3-ubyte", "emnist-letters-train-labels-idx1-ubyte.gz"),
    ],
)
@pytest.mark.parametrize("test", ["t10k", "test"])
def test_load_finds_both_splits(tmp_path: Path, images: str, labels: str, test: str) -> None:
    write(tmp_path, images, labels)
    write(tmp_path, images.replace("train", test), labels.replace("train", test), 2)
    train, held = (idx.load(str(tmp_path), split, 6) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images[..., 0], IMAGES)
    np.testing.assert_array_equal(held.labels, LABELS[:2])
    assert train.num_classes == held.num_classes == 3


def test_load_holds_out_a_share_where_there_is_no_test(tmp_path: Path) -> None:
    write(tmp_path, "train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz")
    test = idx.load(str(tmp_path), "test", 6, Options(test_fraction=0.25))
    assert np.bincount(test.labels).tolist() == [1, 1, 1]


def test_load_pads_to_the_resolution(tmp_path: Path) -> None:
    write(tmp_path, "train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz")
    padded = idx.load(str(tmp_path), "all", 8)
    np.testing.assert_array_equal(padded.images[:, 1:7, 1:7, 0], IMAGES)
    assert padded.images.sum() == IMAGES.sum()


def test_load_refuses_two_data_sets_in_one_folder(tmp_path: Path) -> None:
    write(tmp_path, "a-train-images-idx3-ubyte", "a-train-labels-idx1-ubyte.gz")
    write(tmp_path, "b-train-images-idx3-ubyte", "b-train-labels-idx1-ubyte.gz")
    with pytest.raises(ValueError, match="several: a-train-images.*expected one data set a folder"):
        idx.load(str(tmp_path))


def test_load_names_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path, "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(FileNotFoundError, match="no train labels"):
        idx.load(str(tmp_path))


def test_load_refuses_a_header_that_overflows(tmp_path: Path) -> None:
    write(tmp_path, "train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz")
    header = struct.pack(">4I", 0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(100))
    with pytest.raises(
        ValueError, match=f"100 bytes after its header, expected {(2**32 - 1) ** 3}"
    ):
        idx.load(str(tmp_path))
