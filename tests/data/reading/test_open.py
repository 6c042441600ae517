"""Sources by name: also a dotted module of the user's own, which docs/data.md shows."""

import copy
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.contract import SourceDefaults, completed
from tests.tiny import RECIPE, dmd2, refused

DOCS = Path(__file__).parents[3] / "docs" / "data.md"

LAZY = '''
"""Images that are made when they are asked for."""

import numpy as np

class Ramp:
    name, channels, num_classes = "ramp", 1, 3

    def __init__(self, resolution):
        self.resolution = resolution

    def __len__(self):
        return 12

    def examples(self, indices):
        shape = (len(indices), self.resolution, self.resolution, 1)
        image = np.broadcast_to(20 * indices[:, None, None, None], shape).astype(np.uint8)
        return {"image": image, "label": (indices % 3).astype(np.int32)}

def load(path, split, resolution, options):
    return Ramp(resolution)
'''


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package my_lab in the current folder, forgotten afterwards."""
    (tmp_path / "my_lab").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    yield tmp_path / "my_lab"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


def config(name: str) -> ConfigDict:
    return ConfigDict({"name": name, "path": ""})


def load(lab: Path, text: str, name: str = "my_lab.mine") -> data.Source:
    (lab / "mine.py").write_text(text)
    return data.load(config(name), "train", 8)


def test_documented_module_is_checked_and_trained_on(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (lab / "shapes.py").write_text(code)
    words = [f"--config={RECIPE}", "--config.data.name=my_lab.shapes"]
    assert dmd2("data", *words) == 0
    said = capsys.readouterr().out
    assert "shapes: uint8 [8, 8, 1], 2 classes" in said
    assert re.search(r"train +360 +2 +0", said)
    assert re.search(r"test +40 +2 +0", said)
    assert (lab.parent / "data.png").is_file()
    more = ("--config.teacher.steps=1", "--workdir=run")
    assert dmd2("train-teacher", *words, *more) == 0
    recorded = json.loads((lab.parent / "run" / "config.json").read_text())
    assert "my_lab.shapes" in json.dumps(recorded)
    assert json.dumps(recorded).count('"num_classes": 2') == 1  # counted, and recorded
    assert (lab.parent / "run" / "teacher.safetensors").is_file()


def test_load_gives_a_plain_object_the_optional_members(lab: Path) -> None:
    source = load(lab, LAZY)
    assert (source.null, source.has_images, source.text_encoders) == (None, True, ())
    assert (source.identity, dict(source.corrupt), source.describe(3)) == (None, {}, "image 3")
    assert (len(source), source.name, source.num_classes) == (12, "ramp", 3)
    assert source.examples(np.array([2]))["image"].max() == 40


def test_completed_keeps_what_a_source_says_itself() -> None:
    corrupt: dict[int, str] = {}
    own = {"describe": "file {}.png".format, "corrupt": corrupt, "examples": None}
    fields = {"name": "n", "resolution": 8, "channels": 1, "num_classes": 2, **own}
    source = completed(type("Own", (SimpleNamespace,), {"__len__": lambda _: 3})(**fields), "m")
    corrupt[1] = "found later"
    assert source.describe(1) == "file 1.png"
    assert source.corrupt == {1: "found later"}
    assert source.null is None
    assert copy.copy(source).describe(1) == "file 1.png"


def test_completed_hands_on_what_lacks_nothing() -> None:
    images = np.zeros((2, 4, 4, 1), np.uint8)
    dataset = data.ImageDataset(images, np.zeros(2, np.int32), 1, "zeros")
    assert completed(dataset, "m") is dataset


def test_every_optional_member_is_declared() -> None:
    optional = {name for name in vars(SourceDefaults) if not name.startswith("_")}
    declared = {name for name in vars(data.Source) if not name.startswith("_")}
    assert optional < declared
    assert declared - optional == {"name", "resolution", "channels", "num_classes"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("astype(np.uint8)", "astype(np.float32)"), "image of one example is float32.*uint8"),
        (("self.resolution, 1)", "self.resolution, 3)"), r"\(1, 8, 8, 3\), expected uint8"),
        (("astype(np.int32)", "astype(np.int64)"), "label of one example is int64.*int32"),
        (("indices % 3", "indices % 3 + 3"), "first label is 3, expected one of 0..2"),
        (("return 12", "return 0"), "ramp is empty, expected at least one"),
        (("channels, num_classes = ", "channels, _ = "), "Ramp without num_classes, expected"),
        (("self.resolution = resolution", "self.resolution = 4"), "4 pixels wide, expected .*=8"),
        (("def load(", "def open_it("), "does not define load, expected"),
    ],
)
def test_load_refuses_what_is_no_source(lab: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(Refused, match=message):
        load(lab, LAZY.replace(*change))


def test_load_hands_what_follows_the_colon_to_a_module_with_a_spec(lab: Path) -> None:
    spec = 'SPEC = "<height>"\n' + LAZY.replace("Ramp(resolution)", "Ramp(int(options.spec))")
    assert load(lab, spec, "my_lab.mine:8").resolution == 8


def test_load_refuses_a_colon_that_a_module_does_not_take(lab: Path) -> None:
    with pytest.raises(Refused, match="takes nothing after a colon"):
        load(lab, LAZY, "my_lab.mine:8")


def test_load_says_where_it_looked_for_a_module(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "data", f"--config={RECIPE}", "--config.data.name=my_lab.gone")
    assert "config.data.name='my_lab.gone' is no module that Python finds" in said
    assert str(lab.parent) in said


def test_load_keeps_the_fault_of_a_module_that_breaks(lab: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        load(lab, "1 / 0")


def test_load_takes_the_resolution_that_the_model_has() -> None:
    digits: Any = ConfigDict({"name": "digits", "path": ""})
    assert data.load(digits, "train", 8).resolution == 8
    with pytest.raises(Refused, match="resolution=16 for digits, expected 8"):
        data.load(digits, "train", 16)
