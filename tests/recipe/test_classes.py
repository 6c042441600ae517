"""What a run records of its data, and what is refused by it."""

import errno
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.data import ImageDataset
from dmd2_jax.data.reading.classes import Listing, in_order, shown
from dmd2_jax.data.reading.files import Files
from dmd2_jax.recipe import classes
from dmd2_jax.recipe.classes import (
    DataRecord,
    check_resumed,
    check_same_names,
    check_teacher_data,
    data_record,
    read_record,
    weights_record,
    write_record,
)
from dmd2_jax.recipe.data_files import FILES, read_files, write_files
from dmd2_jax.recipe.exported_weights import save_weights
from dmd2_jax.runtime.seal import Unreachable, seal
from dmd2_jax.weights.state_dict import write_safetensors

FRUIT = ("apple", "banana", "cherry")


def source(names: tuple[str, ...] | None = FRUIT, labels: tuple[int, ...] = (0, 1, 2, 0)):
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    number = 3 if names is None else len(names)
    return ImageDataset(images, np.array(labels, np.int32), number, "fruit", names)


class Renumbered(ImageDataset):
    """Data whose classes earlier releases numbered otherwise."""

    formerly = "by spelling: 0, 1, 10, 2, ..."


def test_in_order_counts_whole_numbers_by_value_and_other_names_by_spelling() -> None:
    assert in_order(["10", "9", "0", "9"]) == ["0", "9", "10"]
    assert in_order(["010", "9", "09"]) == ["09", "9", "010"]
    assert in_order(["10", "9", "x"]) == ["10", "9", "x"]


@pytest.mark.parametrize("names", [FRUIT, None])
def test_record_is_read_as_it_was_written(tmp_path: Path, names: tuple[str, ...] | None) -> None:
    assert read_record(tmp_path) is None
    record = data_record(source(names))
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert record.listing is not None and record.listing.counts == (2, 1, 1)


def test_record_keeps_what_was_recorded_before(tmp_path: Path) -> None:
    records = [data_record(source(labels=labels)) for labels in ((0, 1), (0, 1), (0, 2))]
    for record in records:
        write_record(tmp_path, record)
    value = classes._read_file(tmp_path / classes.RECORD)
    assert value is not None
    assert [it["listing"]["counts"] for it in value["changes"]] == [[1, 1, 0]]


def test_a_record_that_was_changed_is_seen_by_its_seal(tmp_path: Path) -> None:
    write_record(tmp_path, data_record(source()))
    file = tmp_path / "data.json"
    value = json.loads(file.read_text())
    file.write_text(json.dumps(value | {"class_names": value["class_names"][::-1]}))
    with pytest.raises(Refused, match="does not match its own seal"):
        read_record(tmp_path)
    with pytest.raises(Refused, match="does not match its own seal"):
        write_record(tmp_path, data_record(source()))
    del value["seal"]  # of an older release, or edited on purpose
    file.write_text(json.dumps(value | {"changes": 3}))
    assert read_record(tmp_path) == data_record(source())
    write_record(tmp_path, data_record(source()))
    assert "changes" not in json.loads(file.read_text())


def test_a_record_that_the_disk_does_not_hand_over_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(classes, "read_json", stale)
    with pytest.raises(Unreachable, match=r"data\.json cannot be read at the moment"):
        read_record(tmp_path)


def test_read_record_refuses_what_is_none(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"source": "x", "images": 1, "num_classes": 2, "class_names": [1]}'):
        (tmp_path / classes.RECORD).write_text(text)
        with pytest.raises(ValueError, match=r"data\.json"):
            read_record(tmp_path)


def test_check_resumed_names_the_classes_that_moved() -> None:
    here = source(("banana", "cherry", "zapple"))
    with pytest.raises(ValueError) as caught:
        check_resumed(data_record(source()).to_json(), here, "runs/t")
    message = str(caught.value)
    assert "class 0 is 'banana', expected 'apple'" in message
    assert "new: 'zapple'; missing: 'apple'" in message
    assert "runs/t" in message and "allow_change=data" in message


def test_check_resumed_says_of_which_class_examples_are_new() -> None:
    with pytest.raises(ValueError, match="got 5 examples, expected 4; of class 1 'banana' 2, expe"):
        check_resumed(data_record(source()), source(labels=(0, 1, 2, 0, 1)), "runs/t")
    with pytest.raises(ValueError, match="some with other names or classes"):
        check_resumed(data_record(source()), source(labels=(1, 0, 2, 0)), "runs/t")


def test_check_resumed_accepts_the_same_and_what_is_allowed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    check_resumed(data_record(source()), source(), "runs/t")
    check_resumed(data_record(source(None)), source(), "runs/t")  # a release that knew no names
    assert capsys.readouterr().err == ""
    check_resumed(data_record(source()), source(labels=(0, 1)), "runs/t", ["data"])
    assert "accepted by allow_change: fruit lists other examples" in capsys.readouterr().err


def test_other_pixels_under_the_same_labels_are_refused_where_both_are_known() -> None:
    record, here = data_record(source()), source()
    here.images[0] = 1
    with pytest.raises(ValueError, match="other contents under the same names .*sizes or bytes"):
        check_resumed(record, here, "runs/t")
    value = record.to_json()
    del value["listing"]["contents"], value["listing"]["sizes"]  # of a release that knew neither
    check_resumed(value, here, "runs/t")


def test_record_of_a_release_that_knew_less_is_completed_and_no_change(tmp_path: Path) -> None:
    record = data_record(source())
    value = record.to_json()
    del value["listing"]["contents"], value["listing"]["sizes"]
    (tmp_path / classes.RECORD).write_text(json.dumps(value))
    assert read_record(tmp_path) == record._replace(listing=record.listing._replace(contents=""))
    write_record(tmp_path, record)
    assert json.loads((tmp_path / classes.RECORD).read_text()) == seal(record.to_json())


def test_files_are_read_as_they_were_written_or_not_at_all(tmp_path: Path) -> None:
    files = Files(("a", "\udcff"), (1, 2))
    write_files(tmp_path, files)
    first = (tmp_path / FILES).read_bytes()
    listing = Listing("", (), files.by_size)
    assert read_files(tmp_path, listing) == files
    assert read_files(tmp_path, listing._replace(sizes="other")) is None
    write_files(tmp_path, files)
    assert (tmp_path / FILES).read_bytes() == first
    damaged = (
        b"",
        first[:-9],
        b"x" + first,
        *map(gzip.compress, (b"[]", b"{", b"[" * 9999, b"{}")),
    )
    for content in damaged:
        (tmp_path / FILES).write_bytes(content)
        assert read_files(tmp_path, listing) is None


def test_teacher_of_other_images_is_refused_beside_its_run_and_said_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = data_record(source())
    file = weights(tmp_path / "teacher.safetensors", record)
    check_teacher_data(file, source(labels=(2, 1)), 3)
    assert "the student would see other data than its teacher did" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    write_record(tmp_path, record)
    with pytest.raises(ValueError, match=r"got 2 examples, expected 4.*allow_change=data"):
        check_teacher_data(file, source(labels=(2, 1)), 0)
    check_teacher_data(file, source(labels=(2, 1)), 3, ["data"])
    check_teacher_data(file, source(), 3)


def test_check_resumed_of_a_run_without_a_record_refuses_only_what_was_numbered_otherwise() -> None:
    check_resumed(None, source(), "runs/t")
    it = source()
    here = Renumbered(it.images, it.labels, 3, "fruit", ("2", "9", "10"))
    check_resumed(data_record(here), here, "runs/t")
    with pytest.raises(
        ValueError, match=r"numbered the classes of fruit by spelling.*'2', '9', '1"
    ):
        check_resumed(None, here, "runs/t")


def weights(file: Path, record: DataRecord | None) -> Path:
    """A file of weights of a family that takes notes."""

    class Family:
        def save(self, params, path, notes=None) -> None:
            write_safetensors(params, path, notes)

    save_weights(Family(), {"w": np.zeros(1, np.float32)}, file, record)  # type: ignore[arg-type]
    return file


def test_weights_say_of_which_classes_they_are(tmp_path: Path) -> None:
    file = weights(tmp_path / "teacher.safetensors", data_record(source()))
    assert weights_record(file) == data_record(source())
    check_teacher_data(file, source(labels=(2, 1)), 3)  # other images, the same classes
    other = source(("banana", "cherry", "zapple"))
    check_teacher_data(file, other, 0)  # a network without classes
    with pytest.raises(ValueError, match=r"in .*teacher\.safetensors.*class 0 is 'banana'"):
        check_teacher_data(file, other, 3)


def test_weights_without_notes_pass(tmp_path: Path) -> None:
    for record in (None, data_record(source(None))):
        file = weights(tmp_path / "w.safetensors", record)
        assert weights_record(file) is None
        check_teacher_data(file, source(), 3)
    assert weights_record(tmp_path / "none.pkl") is None


def test_weights_of_an_earlier_run_that_numbered_otherwise_are_refused(tmp_path: Path) -> None:
    it = source()
    here = Renumbered(it.images, it.labels, 3, "fruit", ("2", "9", "10"))
    file = weights(tmp_path / "teacher.safetensors", None)
    check_teacher_data(file, here, 3)  # somebody's weights, of no run of ours
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="numbered the classes of fruit by spelling"):
        check_teacher_data(file, here, 3)


def test_check_same_names_says_what_is_new_in_a_long_list() -> None:
    names = tuple(f"c{i:02}" for i in range(20))
    record = data_record(source(names, (0,)))
    with pytest.raises(ValueError, match=r"17 more differ; new: 'a'; missing: 'c19'; .*, or go\."):
        check_same_names(record, source(("a", *names[:-1]), (0,)), "runs/t", "or go")


def test_check_same_names_of_a_run_without_a_record_refuses_what_was_numbered_otherwise() -> None:
    it = source()
    check_same_names(None, it, "runs/t", "or go")
    with pytest.raises(ValueError, match="numbered the classes of fruit by spelling.*, or go"):
        check_same_names(
            None, Renumbered(it.images, it.labels, 3, "fruit", FRUIT), "runs/t", "or go"
        )


def test_shown_sends_a_terminal_nothing_but_letters() -> None:
    assert shown("a\x1b[31m\udc80b") == "a\ufffd[31m\ufffdb"
    assert shown("x" * 80) == "x" * 59 + "…"
