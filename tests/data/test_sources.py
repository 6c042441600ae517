"""The registry, digits and Fashion-MNIST's files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import dmd2_jax.data as data
from dmd2_jax.data import digits
from dmd2_jax.data.reading.dataset import class_counts


def config(name="digits", path="", resolution=8):
    return ConfigDict({"name": name, "path": str(path)}), resolution


def load(named, split):
    return data.load(named[0], split, named[1])


def test_available_lists_the_sources():
    assert {"digits", "fashion_mnist"} <= set(data.available())
    assert "dataset" not in data.available()


def test_load_names_the_nearest_source_for_an_unknown_one():
    with pytest.raises(ValueError, match=r"'digit', expected one of .*did you mean 'digits'"):
        load(config("digit"), "train")


def test_load_refuses_helper_modules_and_paths():
    for name in ("dataset", "..networks.classifier", "os"):
        with pytest.raises(ValueError, match="expected one of"):
            load(config(name), "train")


def test_load_refuses_an_unknown_split():
    with pytest.raises(ValueError, match=r"split='valid' of digits, expected one of"):
        load(config(), "valid")


def test_load_digits_refuses_a_path_which_it_would_not_read():
    with pytest.raises(ValueError, match=r"data\.path=photos .*image_folder"):
        load(config(path="photos"), "train")


def test_load_digits_refuses_another_resolution():
    with pytest.raises(ValueError, match="resolution=32 for digits, expected 8"):
        load(config(resolution=32), "train")


def test_load_digits_rescales_the_grey_values():
    from sklearn.datasets import load_digits

    dataset = load(config(), "all")
    raw = load_digits().images
    # The splits reorder the images, so the histograms of grey values are compared.
    values, counts = np.unique(dataset.images, return_counts=True)
    np.testing.assert_array_equal(values, np.round(np.arange(17) * 255 / 16))
    np.testing.assert_array_equal(counts, np.unique(raw, return_counts=True)[1])


def test_load_digits_reads_the_table_of_scikit_learn(monkeypatch):
    from sklearn.datasets import load_digits

    raw = load_digits()
    np.testing.assert_array_equal(digits._table(), np.column_stack([raw.data, raw.target]))
    monkeypatch.setattr(Path, "is_file", lambda path: False)  # where it lies elsewhere
    np.testing.assert_array_equal(digits._table()[:, -1], raw.target)


def test_load_digits_splits_are_disjoint_and_complete():
    train, test, both = (load(config(), split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (1438, 359, 1797)
    np.testing.assert_array_equal(both.images, np.concatenate([train.images, test.images]))
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


def test_load_digits_split_has_a_fifth_of_every_class():
    test, both = class_counts(digits.load(split="test")), class_counts(digits.load(split="all"))
    assert np.abs(test - 0.2 * both).max() <= 0.5


def test_load_digits_is_the_same_every_time():
    first, second = digits.load(), digits.load()
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)


# --- Fashion-MNIST ---------------------------------------------------------------------------

IMAGES = np.random.RandomState(0).randint(0, 256, (5, 28, 28)).astype(np.uint8)
LABELS = np.array([3, 0, 9, 1, 1], np.uint8)


def idx(array):
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    """A complete tiny copy: train gzipped, test plain."""
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES[:2]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[:2]))
    return tmp_path


def test_load_fashion_mnist_reads_gzipped_files(folder):
    dataset = load(config("fashion_mnist", folder, 28), "train")
    np.testing.assert_array_equal(dataset.images[..., 0], IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)


def test_load_fashion_mnist_reads_plain_files(folder):
    dataset = load(config("fashion_mnist", folder, 28), "test")
    np.testing.assert_array_equal(dataset.images[..., 0], IMAGES[:2])


def test_load_fashion_mnist_all_is_train_then_test(folder):
    dataset = load(config("fashion_mnist", folder, 28), "all")
    np.testing.assert_array_equal(dataset.labels, [*LABELS, *LABELS[:2]])


def test_load_fashion_mnist_pads_to_32_with_two_black_lines(folder):
    images = load(config("fashion_mnist", folder, 32), "train").images[..., 0]
    np.testing.assert_array_equal(images[:, 2:30, 2:30], IMAGES)
    assert images.sum() == IMAGES.sum()


def test_load_fashion_mnist_refuses_other_resolutions(folder):
    with pytest.raises(ValueError, match=r"resolution=64 for fashion_mnist, expected one of"):
        load(config("fashion_mnist", folder, 64), "train")


def test_load_fashion_mnist_refuses_an_unknown_split(folder):
    with pytest.raises(ValueError, match="split='valid'"):
        load(config("fashion_mnist", folder, 28), "valid")


def test_load_fashion_mnist_asks_for_a_path():
    with pytest.raises(ValueError, match=r"config\.data\.path is empty.*dataset-fashion-mnist"):
        load(config("fashion_mnist", "", 28), "train")


def test_load_fashion_mnist_lists_missing_files(folder):
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1.*t10k-images-idx3") as caught:
        load(config("fashion_mnist", folder, 28), "all")
    assert "train-images" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 10, 16, 16 + 2 * 784 - 1])
def test_load_fashion_mnist_refuses_truncated_plain_files(folder, size):
    file = folder / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:size])
    got = size if size < 16 else size - 16
    with pytest.raises(ValueError, match=rf"\b{got} bytes.*truncated"):
        load(config("fashion_mnist", folder, 28), "test")


def test_load_fashion_mnist_refuses_truncated_gzip_files(folder):
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"expected 3920 for 5 items.*truncated"):
        load(config("fashion_mnist", folder, 28), "train")


def test_load_fashion_mnist_refuses_a_file_that_is_not_gzipped(folder):
    (folder / "train-images-idx3-ubyte.gz").write_bytes(idx(IMAGES))
    with pytest.raises(ValueError, match="truncated or damaged"):
        load(config("fashion_mnist", folder, 28), "train")


def test_load_fashion_mnist_refuses_bytes_after_the_end(folder):
    file = folder / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ValueError, match="more than 2 bytes"):
        load(config("fashion_mnist", folder, 28), "test")


def test_load_fashion_mnist_refuses_a_header_that_promises_terabytes(folder):
    header = struct.pack(">4I", 0x0803, 2**32 - 1, 28, 28)
    (folder / "t10k-images-idx3-ubyte").write_bytes(header + bytes(784))
    with pytest.raises(ValueError, match=r"784 bytes after its header, expected 3367254359280"):
        load(config("fashion_mnist", folder, 28), "test")


def test_load_fashion_mnist_refuses_a_wrong_magic_number(folder):
    (folder / "t10k-images-idx3-ubyte").write_bytes(b"\x89PNG" + bytes(2000))
    with pytest.raises(ValueError, match="magic number 2303741511, expected 2051"):
        load(config("fashion_mnist", folder, 28), "test")


def test_load_fashion_mnist_refuses_images_of_another_size(folder):
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((2, 8, 8), np.uint8)))
    with pytest.raises(ValueError, match=r"size \(8, 8\), expected \(28, 28\)"):
        load(config("fashion_mnist", folder, 28), "test")


def test_load_fashion_mnist_refuses_labels_out_of_range(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([0, 10], np.uint8)))
    with pytest.raises(ValueError, match=r"has label 10, expected 0\.\.9"):
        load(config("fashion_mnist", folder, 28), "test")


def test_load_fashion_mnist_refuses_labels_of_another_number(folder):
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    with pytest.raises(ValueError, match="has 5 labels, expected 2"):
        load(config("fashion_mnist", folder, 28), "test")
