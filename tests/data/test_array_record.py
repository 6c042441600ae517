"""Shards that `dmd2 data --write` writes: reading, damage, and an info.json that lies."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

import dmd2_jax.data as data
from dmd2_jax.config.refused import pip_install
from dmd2_jax.data import Options, array_record
from tests.data.images import picture

IMAGES = np.array([picture(i) for i in range(30)])
LABELS = np.arange(30) % 3


def write(folder: Path, encoding: str = "raw", **changed: Any) -> Path:
    """Write 20 train images in two shards and 10 test images in one."""
    folder.mkdir()
    splits = {}
    for split, rows in (("train", slice(0, 20)), ("test", slice(20, 30))):
        with array_record.ShardWriter(folder, split, encoding) as writer:
            for image, label in zip(IMAGES[rows], LABELS[rows], strict=True):
                writer.add(image, int(label))
        splits[split] = writer.files
    info = {"format": 1, "name": "toy", "resolution": 8, "channels": 3, "num_classes": 3}
    info |= {"encoding": encoding, "splits": splits} | changed
    (folder / "info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(params=["raw", "png"])
def folder(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(array_record, "SHARD_BYTES", 10 * 8 * 8 * 3)
    return write(tmp_path / "shards", request.param)


def loaded(folder: Path, split: str = "all", **options: int):
    return array_record.load(str(folder), split, 8, Options(**options))


def test_load_returns_what_was_written_in_any_order(folder: Path) -> None:
    indices = np.random.RandomState(0).randint(0, 30, 100)
    batch = loaded(folder).examples(indices)
    np.testing.assert_array_equal(batch["image"], IMAGES[indices])
    np.testing.assert_array_equal(batch["label"], LABELS[indices])
    assert batch["label"].dtype == np.int32


def test_load_has_the_splits_that_were_written(folder: Path) -> None:
    train, test = (loaded(folder, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (20, 10)
    np.testing.assert_array_equal(test.examples(np.arange(10))["image"], IMAGES[20:])


def test_writer_makes_shards_of_a_size_and_names_their_number(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == [
        "info.json",
        "test-00000-of-00001.array_record",
        "train-00000-of-00002.array_record",
        "train-00001-of-00002.array_record",
    ]


def test_damaged_records_are_replaced_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    big = np.array([picture(i, side=64) for i in range(12)])
    folder.mkdir()
    with array_record.ShardWriter(folder, "train", "raw") as writer:
        for label, image in enumerate(big):
            writer.add(image, label)
    info = {"format": 1, "name": "toy", "resolution": 64, "channels": 3, "num_classes": 12}
    info |= {"encoding": "raw", "splits": {"train": writer.files}}
    (folder / "info.json").write_text(json.dumps(info))
    file = folder / "train-00000-of-00001.array_record"
    content = bytearray(file.read_bytes())
    place = content.index(big[5].tobytes()[:64])
    content[place + 5] ^= 1
    file.write_bytes(content)
    source = array_record.load(str(folder), "train", 64, Options())
    batch = source.examples(np.arange(12))
    assert batch["label"].tolist() == [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11]
    np.testing.assert_array_equal(batch["image"], big[batch["label"]])
    assert list(source.corrupt) == [5]
    assert "train-00000-of-00001.array_record record 5" in source.corrupt[5]


def test_a_label_that_is_no_class_is_corrupt(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", num_classes=2)  # every third label is 2
    with pytest.raises(ValueError, match=r"record 2 \(class 2 of 2\)"):
        loaded(folder, "train", max_corrupt=0).examples(np.arange(20))


def test_load_refuses_a_truncated_shard(folder: Path) -> None:
    file = next(folder.glob("test-*"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="test-00000-of-00001.*expected 10 records"):
        loaded(folder)


def test_load_refuses_a_missing_shard(folder: Path) -> None:
    next(folder.glob("test-*")).unlink()
    with pytest.raises(ValueError, match=r"test-00000-of-00001.*is missing, expected 10 records"):
        loaded(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info.pop("splits"),
        lambda info: info.update(format=2),
        lambda info: info.update(encoding="pickle"),
        lambda info: info.update(resolution=10**9),
        lambda info: info.update(channels="3"),
        lambda info: info["splits"].update(train=[["../../secret", 20]]),
        lambda info: info["splits"].update(train=[["/etc/passwd", 20]]),
        lambda info: info["splits"].update(train=[["..", 20]]),
        lambda info: info["splits"].update(train=[["train-00000-of-00001.array_record", -1]]),
        lambda info: info["splits"].update(train="all"),
    ],
)
def test_load_refuses_an_info_that_lies(tmp_path: Path, change: Callable[[dict], Any]) -> None:
    folder = write(tmp_path / "shards")
    info = json.loads((folder / "info.json").read_text())
    change(info)
    (folder / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"info\.json is refused"):
        loaded(folder)


def test_load_refuses_a_folder_without_info(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no info\.json.*--write=DIR"):
        loaded(tmp_path)


def test_load_refuses_an_unknown_split(folder: Path) -> None:
    with pytest.raises(ValueError, match="split='valid'"):
        loaded(folder, "valid")


def test_load_checks_the_resolution(folder: Path) -> None:
    config = ConfigDict({"name": "array_record", "path": str(folder)})
    with pytest.raises(ValueError, match="8 pixels wide, expected config.model.resolution=16"):
        data.load(config, "train", 16)


def test_more_shards_than_may_be_open_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmd2_jax.data.reading import records

    monkeypatch.setattr(array_record, "SHARD_BYTES", 1)  # one record a shard
    monkeypatch.setattr(records, "_file_limit", lambda: 6)
    source = loaded(write(tmp_path / "shards"))
    np.testing.assert_array_equal(source.examples(np.arange(30))["image"], IMAGES)


def test_load_without_the_package_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    with pytest.raises(ValueError, match=re.escape(pip_install("tfds"))):
        loaded(folder)


def test_reading_imports_no_tensorflow(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards")
    code = (
        "import sys, numpy as np; from dmd2_jax.data import array_record as a\n"
        f"a.load({str(folder)!r}, 'train', 8).examples(np.arange(3))\n"
        "assert not {'tensorflow', 'tensorflow_datasets', 'grain'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    shutil.rmtree(folder)
