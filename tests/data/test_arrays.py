"""NumPy files: names, splits, and files that would run code or fill the memory."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import dmd2_jax.data as data
from dmd2_jax.data import Options, Source, arrays

IMAGES = np.random.RandomState(0).randint(0, 256, (20, 4, 4, 3)).astype(np.uint8)
LABELS = np.arange(20) % 2


def loaded(path: Path, split: str = "all", **options: float) -> Source:
    return arrays.load(str(path), split, 4, Options(**options))


def content(source: Source) -> tuple[np.ndarray, np.ndarray]:
    batch = source.examples(np.arange(len(source)))
    return batch["image"], batch["label"]


@pytest.mark.parametrize(
    ("x", "y"), [("images", "labels"), ("x", "y"), ("arr_0", "arr_1"), ("image", "label")]
)
def test_load_finds_images_and_labels_under_their_usual_names(
    tmp_path: Path, x: str, y: str
) -> None:
    np.savez(tmp_path / "d.npz", **{x: IMAGES, y: LABELS})
    source = loaded(tmp_path / "d.npz")
    images, labels = content(source)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    assert (labels.dtype, source.num_classes) == (np.int32, 2)


def test_load_adds_the_channel_of_grey_images_and_flattens_label_columns(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", images=IMAGES[..., 0], labels=LABELS[:, None])
    images, labels = content(loaded(tmp_path / "d.npz"))
    np.testing.assert_array_equal(images, IMAGES[..., :1])
    np.testing.assert_array_equal(labels, LABELS)


def test_load_without_labels_is_one_class(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", IMAGES)
    source = loaded(tmp_path / "d.npz")
    assert (source.num_classes, content(source)[1].tolist()) == (1, [0] * 20)


@pytest.mark.parametrize("form", ["{}_{}", "{1}_{0}"])
def test_load_takes_the_splits_of_one_file(tmp_path: Path, form: str) -> None:
    names = {form.format(*pair): v for pair, v in {
        ("x", "train"): IMAGES[:15], ("y", "train"): LABELS[:15],
        ("x", "test"): IMAGES[15:], ("y", "test"): LABELS[15:] + 5,
    }.items()}  # fmt: skip
    np.savez(tmp_path / "d.npz", **names)
    assert len(loaded(tmp_path / "d.npz", "train")) == 15
    test = loaded(tmp_path / "d.npz", "test")
    np.testing.assert_array_equal(content(test)[0], IMAGES[15:])
    assert test.num_classes == 7
    assert len(loaded(tmp_path / "d.npz", "all")) == 20


def test_load_takes_the_splits_of_two_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=IMAGES[:15], labels=LABELS[:15])
    np.savez(tmp_path / "val.npz", images=IMAGES[15:], labels=LABELS[15:])
    np.testing.assert_array_equal(content(loaded(tmp_path, "test"))[0], IMAGES[15:])


def test_load_maps_npy_files_and_holds_out_a_share(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    assert isinstance(loaded(tmp_path).source.images, np.memmap)
    train, test = (loaded(tmp_path, split, test_fraction=0.2) for split in ("train", "test"))
    assert np.bincount(content(test)[1]).tolist() == [2, 2]
    seen = {image.tobytes() for source in (train, test) for image in content(source)[0]}
    assert seen == {image.tobytes() for image in IMAGES}


def test_load_checks_the_resolution(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=IMAGES)
    config = ConfigDict({"name": "arrays", "path": str(tmp_path / "d.npz")})
    with pytest.raises(ValueError, match="4 pixels wide, expected config.model.resolution=8"):
        data.load(config, "train", 8)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["images", "labels", "extra"])
def test_load_runs_no_code_of_object_arrays_in_npz(tmp_path: Path, name: str) -> None:
    evil = np.array([Evil(tmp_path / "hacked")], dtype=object)
    np.savez(tmp_path / "d.npz", **({"images": IMAGES, "labels": LABELS} | {name: evil}))
    with pytest.raises(ValueError, match="holds Python objects, which could run code"):
        loaded(tmp_path / "d.npz")
    assert not (tmp_path / "hacked").exists()


def test_load_runs_no_code_of_object_arrays_in_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.array([Evil(tmp_path / "hacked")], dtype=object))
    with pytest.raises(ValueError, match="is refused.*plain arrays of numbers"):
        loaded(tmp_path)
    assert not (tmp_path / "hacked").exists()


def test_load_runs_no_code_of_a_pickle_that_is_called_npz(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "d.npz").write_bytes(pickle.dumps(Evil(tmp_path / "hacked")))
    with pytest.raises(ValueError, match="is refused"):
        loaded(tmp_path / "d.npz")
    assert not (tmp_path / "hacked").exists()


def header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def test_load_refuses_a_header_that_promises_terabytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("images.npy", header((2**20, 2**12, 2**12, 3)) + bytes(100))
    with pytest.raises(ValueError, match=r"not the 52,776,558,133,248 that its shape"):
        loaded(tmp_path / "d.npz")


def test_load_refuses_an_npy_that_is_shorter_than_its_header_says(tmp_path: Path) -> None:
    (tmp_path / "images.npy").write_bytes(header((2**20, 2**12, 2**12, 3)) + bytes(100))
    with pytest.raises(ValueError, match="is refused"):
        loaded(tmp_path)


def test_load_refuses_a_header_that_is_no_python_literal(tmp_path: Path) -> None:
    good = header((3,))
    bad = good.replace(b"}", b"(")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("images.npy", bad + bytes(3))
    with pytest.raises(ValueError, match="is refused"):
        loaded(tmp_path / "d.npz")


def test_load_refuses_a_truncated_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=IMAGES)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is refused"):
        loaded(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.astype(np.float32), "labels of float32"),
        (np.eye(20, dtype=np.int64), r"labels of int64 \(20, 20\).*argmax"),
        (LABELS[:7], r"labels of int64 \(7,\)"),
        (LABELS - 1, "labels -1..0, expected 0"),
    ],
)
def test_load_refuses_labels_of_another_form(
    tmp_path: Path, labels: np.ndarray, message: str
) -> None:
    np.savez(tmp_path / "d.npz", images=IMAGES, labels=labels)
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path / "d.npz")


def test_load_names_the_arrays_where_none_is_called_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", pictures=IMAGES)
    with pytest.raises(ValueError, match=r"arrays \['pictures'\], expected images under one of"):
        loaded(tmp_path / "d.npz")


def test_load_refuses_a_place_without_arrays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither train\.npz nor \.npy"):
        loaded(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        loaded(tmp_path / "nowhere.npz")
