"""Data sets prepared by TFDS as array_record and as tfrecord, read without TensorFlow.

Preparing them needs TensorFlow: fixtures/make_tfds.py did, and its files are kept.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import dmd2_jax.data as data
from dmd2_jax.data import Source

pytest.importorskip("tensorflow_datasets")
PREPARED = Path(__file__).parent / "fixtures" / "tfds"
KINDS = pytest.mark.parametrize("kind", ["array_record", "tfrecord"])


def opened(kind: str, spec: str, split: str = "train", folder: Path | None = None) -> Source:
    path = str((folder or PREPARED) / kind)
    config = ConfigDict({"name": f"tfds:{spec}", "path": path})
    return data.load(config, split, 8)


def numbers(source: Source) -> list[int]:
    """Which of the prepared images a source has, by their pixels; checks the labels too."""
    batch = source.examples(np.arange(len(source)))
    known = {
        np.random.RandomState(i).randint(0, 256, (8, 8, 3)).astype(np.uint8).tobytes(): i
        for i in range(26)
    }
    found = [known[image.tobytes()] for image in batch["image"]]
    np.testing.assert_array_equal(batch["label"], np.array(found) % 3)
    return found


@KINDS
def test_load_reads_every_example_of_each_split(kind: str) -> None:
    assert sorted(numbers(opened(kind, "pair"))) == list(range(20))
    assert sorted(numbers(opened(kind, "pair", "test"))) == list(range(20, 26))
    assert sorted(numbers(opened(kind, "pair", "all"))) == list(range(26))
    assert opened(kind, "pair").num_classes == 3


@KINDS
def test_load_reads_a_part_of_a_split(kind: str) -> None:
    first = numbers(opened(kind, "pair:train[:30%]"))
    last = numbers(opened(kind, "pair:train[30%:]"))
    assert (len(first), len(last)) == (6, 14)
    assert first + last == numbers(opened(kind, "pair"))


@KINDS
def test_load_holds_out_a_share_where_there_is_no_test(kind: str) -> None:
    train, test = (numbers(opened(kind, "alone", split)) for split in ("train", "test"))
    assert len(test) == 2
    assert sorted(train + test) == list(range(20))


def test_load_reads_both_formats_in_the_same_order() -> None:
    indices = np.random.RandomState(0).randint(0, 20, 50)
    one, two = (opened(kind, "pair").examples(indices) for kind in ("array_record", "tfrecord"))
    np.testing.assert_array_equal(one["image"], two["image"])


SYNSETS = ("n02119789", "n01440764", "n02100735")
"""As imagenet_resized has them: in an order of their own."""


def named(tmp_path: Path, names: tuple[str, ...]) -> Path:
    """The prepared data with names of their classes, as TFDS keeps them."""
    shutil.copytree(PREPARED / "array_record", tmp_path / "array_record")
    (tmp_path / "array_record/pair/1.0.0/label.labels.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def test_load_counts_synsets_in_the_order_of_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = named(tmp_path, SYNSETS)
    plain, source = opened("array_record", "pair"), opened("array_record", "pair", folder=folder)
    assert source.class_names == tuple(sorted(SYNSETS))
    opened("array_record", "pair", "test", folder)
    (line,) = capsys.readouterr().err.splitlines()  # once
    assert "not as TFDS does, 0 being n02119789" in line
    every = np.arange(20)
    theirs, ours = plain.examples(every)["label"], source.examples(every)["label"]
    assert [SYNSETS[label] for label in theirs] == [source.class_names[label] for label in ours]
    assert (theirs != ours).any()
    assert source.formerly and not plain.formerly


def test_load_keeps_the_numbers_of_other_names(tmp_path: Path) -> None:
    source = opened("array_record", "pair", folder=named(tmp_path, ("owl", "ant", "n01440764")))
    assert source.class_names == ("owl", "ant", "n01440764")
    numbers(source)
    assert opened("array_record", "pair").class_names is None


def test_classes_are_chosen_by_synset_without_decoding(tmp_path: Path) -> None:
    folder = named(tmp_path, SYNSETS)
    whole = opened("array_record", "pair", folder=folder).examples(np.arange(20))
    values = {"name": "tfds:pair", "path": str(folder / "array_record"), "classes": (SYNSETS[0],)}
    source = data.load(ConfigDict(values), "train", 8)
    there = whole["label"] == 2  # the last of the three in the order of their names
    batch = source.examples(np.arange(len(source)))
    np.testing.assert_array_equal(batch["image"], whole["image"][there])
    assert source.class_names == (SYNSETS[0],) and not batch["label"].any()


def test_listing_changes_with_the_names_and_the_part(tmp_path: Path) -> None:
    folder = named(tmp_path, SYNSETS)
    listings = [
        opened("array_record", "pair").listing,
        opened("array_record", "pair", folder=folder).listing,
        opened("array_record", "pair:train[:50%]", folder=folder).listing,
        opened("array_record", "pair", "test", folder).listing,
    ]
    assert len({listing.digest for listing in listings if listing}) == 4
    assert opened("array_record", "pair").listing == listings[0]


def test_load_refuses_a_truncated_tfrecord(tmp_path: Path) -> None:
    shutil.copytree(PREPARED / "tfrecord", tmp_path / "tfrecord")
    (file,) = tmp_path.glob("tfrecord/pair/1.0.0/*train*")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged after record 19"):
        opened("tfrecord", "pair", folder=tmp_path)


def test_load_names_the_splits_there_are() -> None:
    with pytest.raises(ValueError, match=r"pair:tests does not exist.*\['train', 'validation'\]"):
        opened("array_record", "pair:tests")


def test_load_says_how_to_prepare_what_is_missing() -> None:
    with pytest.raises(FileNotFoundError, match=r"tfds:mnist is not prepared.*tfds build mnist"):
        opened("array_record", "mnist")


def test_load_asks_for_the_name_of_a_data_set() -> None:
    with pytest.raises(ValueError, match=r"names no data set, expected tfds:<name>"):
        opened("array_record", "")


def test_load_refuses_a_colon_after_other_sources() -> None:
    config = ConfigDict({"name": "digits:train", "path": ""})
    with pytest.raises(ValueError, match="expected 'digits', which takes nothing after a colon"):
        data.load(config, "train", 8)


def test_reading_imports_no_tensorflow() -> None:
    code = f"""
import sys, numpy as np
from dmd2_jax.data import Options, tfds
for kind in ("array_record", "tfrecord"):
    source = tfds.load({str(PREPARED)!r} + "/" + kind, "train", 8, Options("pair"))
    source.examples(np.arange(20))
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
