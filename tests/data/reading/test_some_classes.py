"""`config.data.classes`: some classes of a source, which count anew."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dmd2_jax import data
from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.data import ImageDataset, array_record
from dmd2_jax.data.reading.some_classes import SomeClasses
from dmd2_jax.recipe.classes import check_teacher_data, data_record
from tests.tiny import dmd2

NAMES = ("ant", "bee", "cat", "golf ball")
IMAGES = 5  # of each class


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images whose value is 40 times the number of their class, plus their own."""
    path = tmp_path_factory.mktemp("animals")
    for number, name in enumerate(NAMES):
        (path / name).mkdir()
        for i in range(IMAGES):
            pixels = np.full((8, 8), 40 * number + i, np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


def config_of(path: Path, classes: object, name: str = "image_folder") -> ConfigDict:
    values = {"name": name, "path": str(path), "test_fraction": 0.2, "classes": classes}
    return ConfigDict(values)


def everything(source: data.Source) -> tuple[list[int], list[int]]:
    batch = source.examples(np.arange(len(source)))
    return batch["image"][:, 0, 0, 0].tolist(), batch["label"].tolist()


@pytest.mark.parametrize("classes", [("golf ball", "bee"), (3, 1), ("1", "golf ball")])
def test_classes_count_in_the_order_of_their_numbers(folder: Path, classes: object) -> None:
    source = data.load(config_of(folder, classes), "all", 8)
    pixels, labels = everything(source)
    assert pixels == [*range(40, 45), *range(120, 125)]
    assert labels == [0] * 5 + [1] * 5
    assert (source.num_classes, source.class_names) == (2, ("bee", "golf ball"))
    assert source.describe(5).endswith("golf ball/0.png")


def test_no_choice_is_all_classes(folder: Path) -> None:
    source = data.load(config_of(folder, ()), "all", 8)
    assert (source.num_classes, len(source)) == (4, 20)


def test_splits_of_some_classes_are_those_of_all(folder: Path) -> None:
    for split in ("train", "test"):
        whole = everything(data.load(config_of(folder, ()), split, 8))
        some = everything(data.load(config_of(folder, ("cat",)), split, 8))
        assert some[0] == [pixel for pixel, label in zip(*whole, strict=True) if label == 2]


def test_source_without_names_is_called_by_its_numbers() -> None:
    images = np.arange(6, dtype=np.uint8).repeat(64).reshape(6, 8, 8, 1)
    whole = ImageDataset(images, np.array([0, 1, 2, 0, 1, 2], np.int32), 3, "numbers")
    source = SomeClasses(whole, (2, 0))
    assert everything(source) == ([0, 2, 3, 5], [0, 1, 0, 1])
    assert source.class_names == ("0", "2")
    assert source.listing is not None and source.listing.counts == (2, 2)


def test_source_that_knows_no_labels_is_read() -> None:
    class Own:
        name, resolution, channels, num_classes = "own", 8, 1, 3

        def __len__(self) -> int:
            return 6

        def examples(self, indices: np.ndarray) -> data.Batch:
            image = np.zeros((len(indices), 8, 8, 1), np.uint8) + indices[:, None, None, None]
            return {"image": image.astype(np.uint8), "label": (indices % 3).astype(np.int32)}

    source = SomeClasses(data.reading.contract.completed(Own(), "own"), ("1",))
    assert everything(source) == ([1, 4], [0, 0])


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_array_record_and_folder_choose_the_same(
    folder: Path, tmp_path: Path, encoding: str
) -> None:
    pytest.importorskip("array_record", reason="needs the extra tfds")
    words = ["--config=digits", "--config.data.name=image_folder", f"--config.data.path={folder}"]
    out = tmp_path / "shards"
    more = [f"--write={out}", f"--encoding={encoding}", "--config.data.test_fraction=0.2"]
    assert dmd2("data", *words, *more, "--config.model.num_classes=4") == 0
    assert isinstance(array_record.load(str(out), "all", 8).known_labels(), np.ndarray)
    shards = data.load(config_of(out, ("bee",), "array_record"), "all", 8)
    pixels, labels = everything(shards)
    assert (sorted(pixels), set(labels)) == (list(range(40, 45)), {0})
    assert shards.class_names == ("bee",)


def test_damaged_image_is_replaced_by_one_of_a_chosen_class(folder: Path, tmp_path: Path) -> None:
    import shutil

    path = shutil.copytree(folder, tmp_path / "animals")
    (path / "bee" / "4.png").write_bytes(b"no image")  # the whole's next one is a cat
    source = data.load(config_of(path, ("bee", "golf ball")), "all", 8)
    pixels, labels = everything(source)
    assert pixels == [40, 41, 42, 43, 120, *range(120, 125)]
    assert labels == [0] * 4 + [1] * 6
    assert list(source.corrupt) == [4] and "bee/4.png" in source.corrupt[4]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("be",), "config.data.classes=be is no class.*nearest names are 'bee'"),
        (("bee", 1), "names a class twice"),
        ((4,), r"class numbers in 0\.\.3"),
    ],
)
def test_classes_that_are_not_there_are_refused(
    folder: Path, classes: tuple[str | int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(config_of(folder, classes), "all", 8)


def test_record_of_a_run_names_the_chosen_classes(folder: Path, tmp_path: Path) -> None:
    some = data.load(config_of(folder, ("bee", "cat")), "all", 8)
    others = data.load(config_of(folder, ("bee", "golf ball")), "all", 8)
    record = data_record(some)
    assert record.class_names == ("bee", "cat") and record.listing is not None
    assert record.listing.counts == (5, 5)
    assert record.listing.digest != data_record(others).listing.digest
    check_teacher_data(tmp_path / "none.safetensors", some, 2)


@pytest.mark.parametrize(
    ("text", "classes"),
    [("()", ()), ("n01440764", ("n01440764",)), ("3,golf ball,'7'", (3, "golf ball", "7"))],
)
def test_classes_are_given_on_the_command_line(text: str, classes: object) -> None:
    config = load_config("digits")
    apply_overrides(config, {"data.classes": text})
    assert config.data.classes == classes
