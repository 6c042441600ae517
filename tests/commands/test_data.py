"""`dmd2 data`: what it lists, checks, draws, writes and refuses."""

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.data import array_record
from tests.data.images import edm_files, encoded, picture, png, write_folder, write_zip
from tests.data.test_arrays import Evil
from tests.tiny import RECIPE, contents, dmd2, results, scratch, teacher_run


def words(name: str, path: Path, *more: str) -> list[str]:
    out = f"--out={scratch() / 'data.png'}"
    overrides = (f"--config.data.name={name}", f"--config.data.path={path}")
    return ["data", f"--config={RECIPE}", *overrides, out, *more]


def refused(capsys: pytest.CaptureFixture[str], *line: str | Path, code: int = 2) -> str:
    capsys.readouterr()
    assert dmd2(*line) == code
    message = capsys.readouterr().err
    assert any(line.startswith(("dmd2: ", "usage: ")) for line in message.splitlines())
    assert "Traceback" not in message
    return message


def test_data_lists_the_sources_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("data") == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[1:]]
    expected = ["array_record", "arrays", "class_latents:[<scale>]", "digits", "fashion_mnist"]
    expected += ["idx", "image_folder"]
    assert names == [*expected, "latents", "tfds:<name>[/<config>][:<split>]", "my_lab.shapes"]
    assert all(len(line.split()) > 4 for line in lines[1:])


def test_data_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("data", "--help") == 0
    text = capsys.readouterr().out
    assert "example:\n  dmd2 data" in text
    assert "--write" in text
    assert "docs/data.md" in text


def test_data_checks_the_recipes_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("data", f"--config={RECIPE}", f"--out={tmp_path / 'd.png'}") == 0
    text = capsys.readouterr().out
    assert "digits: uint8 [8, 8, 1], 10 classes" in text
    assert re.search(r"train +1,438 +10 +0", text)
    assert re.search(r"test +359 +10 +0", text)
    # 8 x 8 images, each 6 times enlarged, with 4 pixels between them and 8 around.
    assert Image.open(tmp_path / "d.png").size == (8 * 48 + 7 * 4 + 16,) * 2


def test_data_counts_every_kind_of_image_and_says_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    kinds = ("png", "webp", "bmp", "gif", "tiff")
    files = {f"a/{i}.{kind}": encoded(picture(i), kind) for i, kind in enumerate(kinds)}
    path = write_folder(tmp_path / "mixed", files | {"a/9.heic": b"", "a/9.xmp": b""})
    assert dmd2(*words("image_folder", path, "--config.data.test_fraction=0")) == 0
    assert re.search(r"train +5 +1 +0", capsys.readouterr().out)
    assert "mixed: left out 2: 1 .heic, 1 .xmp; read are files ending in .png" in caplog.text


def test_data_draws_the_histogram_of_the_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(
        tmp_path / "train.npz", images=np.zeros((60, 8, 8), np.uint8), labels=[0] * 40 + [2] * 20
    )
    np.savez(tmp_path / "test.npz", images=np.zeros((1, 8, 8), np.uint8), labels=[1])
    assert dmd2(*words("arrays", tmp_path)) == 0
    bars = capsys.readouterr().out.partition("train:\n")[2].splitlines()[:3]
    assert bars == [f"  0  40  {'#' * 40}", "  1   0  ", f"  2  20  {'#' * 20}"]


def test_data_lists_corrupt_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = edm_files([0, 1] * 15)
    bad = [name for name in files if name.endswith(("03.png", "17.png"))]
    path = write_zip(tmp_path / "x.zip", files | dict.fromkeys(bad, b"no png"))
    assert dmd2(*words("image_folder", path, "--config.data.max_corrupt=2")) == 0
    text = capsys.readouterr().out
    assert "cannot be decoded:" in text
    assert all(f"x.zip/{name}" in text for name in bad)
    total = sum(int(row) for row in re.findall(r"^(?:train|test) +(\d+)", text, re.M))
    assert total == 28


def test_data_refuses_more_corrupt_images_than_the_config_allows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = dict.fromkeys((f"train/{i}.png" for i in range(3)), b"no png")
    files |= {"train/x.png": png(picture(0)), "test/x.png": png(picture(0))}
    path = write_folder(tmp_path / "x", files)
    message = refused(capsys, *words("image_folder", path, "--config.data.max_corrupt=2"))
    assert "3 images cannot be decoded, expected at most config.data.max_corrupt=2" in message


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_data_writes_what_array_record_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    files = edm_files([i % 3 for i in range(40)])
    files["00000/img00000002.png"] = b"no png"
    source = words("image_folder", write_zip(tmp_path / "x.zip", files))
    out = tmp_path / "made" / "shards"
    assert dmd2(*source, f"--write={out}", f"--encoding={encoding}") == 0
    assert "(1 corrupt ones left out)" in capsys.readouterr().out
    assert dmd2(*words("array_record", out)) == 0
    text = capsys.readouterr().out
    assert "uint8 [8, 8, 3], 3 classes" in text
    counts = [int(row) for row in re.findall(r"^(?:train|test) +(\d+)", text, re.M)]
    assert sum(counts) == 39
    assert [path.name for path in out.parent.iterdir()] == ["shards"]


def test_data_writes_the_names_of_the_classes_too(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": png(picture(i)) for i in range(2) for name in ("cat", "ant")}
    source = words("image_folder", write_folder(tmp_path / "x", files))
    none, out = "--config.data.test_fraction=0", tmp_path / "shards"
    assert dmd2(*source, none, f"--write={out}") == 0
    written = array_record.load(str(out), "train", 8)
    assert written.class_names == ("ant", "cat")
    assert written.listing == array_record.load(str(out), "train", 8).listing


def test_array_record_of_tfds_by_an_earlier_release_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = words("image_folder", write_zip(tmp_path / "x.zip", edm_files([0, 1] * 4)))
    out = tmp_path / "shards"
    assert dmd2(*source, "--config.data.test_fraction=0", f"--write={out}") == 0
    info = json.loads((out / "info.json").read_text()) | {"name": "tfds:imagenet_resized/64x64"}
    del info["class_names"], info["listings"]
    (out / "info.json").write_text(json.dumps(info))
    assert array_record.load(str(out), "train", 8).class_names is None
    assert "kept TFDS's numbers of the classes" in capsys.readouterr().err


def test_data_without_a_test_split_are_checked_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the recipes for CIFAR-10 and ImageNet have them: every image is for training."""
    source = words("image_folder", write_zip(tmp_path / "x.zip", edm_files([0, 1] * 4)))
    none = "--config.data.test_fraction=0"
    assert dmd2(*source, none) == 0
    rows = re.findall(r"^(train|test) +(\d+)", capsys.readouterr().out, re.M)
    assert rows == [("train", "8")]
    assert dmd2(*source, none, f"--write={tmp_path / 'shards'}") == 0
    assert "8 train and 0 test images" in capsys.readouterr().out
    assert dmd2(*words("array_record", tmp_path / "shards")) == 0
    assert re.findall(r"^(train|test) +(\d+)", capsys.readouterr().out, re.M) == rows


def test_data_writes_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert dmd2("data", f"--config={RECIPE}", f"--write={tmp_path / name}") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_data_writes_nothing_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("keep me")
    faults = {"": "exists and is not empty, expected a new folder", "thesis.txt": "is a file"}
    for name, fault in faults.items():
        line = ("data", f"--config={RECIPE}", f"--write={tmp_path / name}")
        assert fault in refused(capsys, *line)
    assert contents(tmp_path) == {"thesis.txt": b"keep me"}


def test_data_leaves_nothing_where_writing_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmd2_jax.data.array_record.ShardWriter.add", full)
    line = ("data", f"--config={RECIPE}", f"--write={tmp_path / 'shards'}")
    assert "No space left" in refused(capsys, *line, code=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["data", "--write=x"], "`dmd2 data` has no --config"),
        (["data", "--config.seed=1"], "`dmd2 data` has no --config"),
        (["data", f"--config={RECIPE}", "--config.data.name=digit"], "did you mean 'digits'?"),
        (["data", f"--config={RECIPE}", "--config.data.name=idx:x"], "takes nothing after a colon"),
        (["data", f"--config={RECIPE}", "--config.data.workers=-1"], "data.workers=-1, expected 0"),
        (["data", f"--config={RECIPE}", "--config.data.test_fraction=2"], "test_fraction=2.0"),
    ],
)
def test_data_refuses(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    line: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *line)
    assert list(tmp_path.iterdir()) == []


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(2**25))
    return buffer.getvalue()


def traversal() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../evil.png", png(picture(0)))
    return buffer.getvalue()


def objects(folder: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.array([Evil(folder / "hacked")], dtype=object))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "file", "make", "message"),
    [
        ("image_folder", "x.zip", lambda folder: traversal(), "stay inside the zip"),
        ("image_folder", "x.zip", lambda folder: bomb(), "may be a zip bomb"),
        ("arrays", "x.npz", objects, "Python objects, which could run code"),
    ],
)
@pytest.mark.parametrize("command", ["data", "train-teacher"])
def test_hostile_files_are_refused_and_do_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    file: str,
    make,
    message: str,
) -> None:
    path = tmp_path / "in" / file
    path.parent.mkdir()
    path.write_bytes(make(tmp_path))
    line = words(name, path)
    if command != "data":
        line = [command, *line[1:-1], f"--workdir={tmp_path / 'run'}"]
    before = contents(tmp_path)
    assert message in refused(capsys, *line)
    assert contents(tmp_path) == before


def train_words(workdir: Path, name: str, path: Path, *more: str) -> list[str]:
    data = (f"--config.data.name={name}", f"--config.data.path={path}")
    return ["train-teacher", f"--config={RECIPE}", f"--workdir={workdir}", *data, *more]


def test_training_from_shards_equals_training_from_memory(tmp_path: Path) -> None:
    assert dmd2("data", f"--config={RECIPE}", f"--write={tmp_path / 'shards'}") == 0
    line = train_words(tmp_path / "run", "array_record", tmp_path / "shards")
    assert dmd2(*line, "--config.data.workers=3") == 0
    for name in ("teacher.safetensors", "metrics.jsonl"):
        got, expected = (results(it)[name] for it in (tmp_path / "run", teacher_run()))
        assert got == expected, name


def test_training_stops_at_too_many_corrupt_images_and_keeps_its_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmd2_jax.data.reading.source._PROBES", 1)
    files = {f"{i % 10}/{i:02d}.png": png(picture(i, channels=1)) for i in range(40)}
    files |= dict.fromkeys(("1/11.png", "7/17.png", "3/23.png"), b"no png")
    path = write_zip(tmp_path / "x.zip", files)
    line = train_words(tmp_path / "run", "image_folder", path)
    message = refused(capsys, *line, "--config.data.max_corrupt=2")
    assert re.search(r"3 images cannot be decoded.*max_corrupt=2: .*x\.zip/\d/\d\d\.png", message)
    saved = sorted(int(step.name) for step in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved
    # With more allowed the same run goes on.
    assert dmd2(*line, "--config.data.max_corrupt=3") == 0
