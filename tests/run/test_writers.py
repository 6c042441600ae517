"""Where metrics go: the two files, TensorBoard's event files, a pretended Weights & Biases."""

import importlib.util
import io
import json
import re
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dmd2_jax.config.refused import pip_install
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.run.writers import Writers, check_writers
from dmd2_jax.runtime.summaries import Average, Histogram

METRICS = {
    "loss": jnp.float32(0.5),
    "by_level": Average(jnp.array([2.0, 0.0]), jnp.array([4, 0])),
    "logits_histogram": Histogram(
        jnp.zeros(20, jnp.int32).at[jnp.array([10, 12])].set(jnp.array([1, 3]))
    ),
}


def picture(folder: Path) -> Path:
    path = folder / "grid.png"
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(path)
    return path


def test_write_and_speed_go_to_files_of_their_own(tmp_path: Path) -> None:
    with Writers(tmp_path) as writers:
        writers.write(3, METRICS)
        writers.speed(3, {"images_per_second": 7.0})
        writers.speed(4, {})
        writers.images(3, {"grid": tmp_path / "unused.png"})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {
            "step": 3,
            "loss": 0.5,
            "by_level": [0.5, None],
            "logits_histogram": [0] * 10 + [1, 0, 3] + [0] * 7,
        }
    ]
    assert read_metrics(tmp_path / "speed.jsonl") == [{"step": 3, "images_per_second": 7.0}]


def test_writers_drop_the_rows_beyond_the_resumed_step(tmp_path: Path) -> None:
    with Writers(tmp_path) as writers:
        for step in (2, 4):
            writers.write(step, METRICS)
            writers.speed(step, {"images_per_second": 7.0})
    Writers(tmp_path, resumed_step=2).close()
    for name in ("metrics.jsonl", "speed.jsonl"):
        assert [row["step"] for row in read_metrics(tmp_path / name)] == [2]


@pytest.mark.parametrize(
    ("log", "missing", "remedy"),
    [
        ({"tensorboard": True}, "tensorboardX", re.escape(pip_install("tensorboard"))),
        ({"clu": True}, "clu", re.escape(pip_install("clu"))),
        ({"clu": True}, "tensorflow", re.escape(pip_install("clu"))),
        ({"wandb_project": "dmd"}, "wandb", "pip install wandb"),
    ],
)
def test_check_writers_names_what_to_install(
    log: dict, missing: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    with pytest.raises(ValueError, match=f"log.{next(iter(log))}.* {missing} .*{remedy}"):
        check_writers(log)
    check_writers({"tensorboard": False, "wandb_project": ""})


class FakeWandb(types.ModuleType):
    """The part of wandb that is used, which notes its calls."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list = []
        self.Histogram = lambda np_histogram: ("histogram", *np_histogram)
        self.Image = lambda path: ("image", path)

    def init(self, **settings):
        self.calls.append(("init", settings))
        return types.SimpleNamespace(
            log=lambda values, step: self.calls.append(("log", step, values)),
            finish=lambda: self.calls.append(("finish",)),
        )


def test_wandb_gets_scalars_histograms_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "config.json").write_text(json.dumps({"config": {"seed": 3}}))
    path = picture(tmp_path)
    with Writers(tmp_path, log={"wandb_project": "digits"}) as writers:
        writers.write(5, METRICS)
        writers.speed(5, {"images_per_second": 7.0})
        writers.images(5, {"grid": path})
    (_, settings), (_, step, values), *others = fake.calls
    assert settings["project"] == "digits" and settings["config"] == {"config": {"seed": 3}}
    assert step == 5 and values["loss"] == 0.5
    assert values["by_level/0"] == 0.5 and "by_level/1" not in values  # there was nothing to say
    _, counts, edges = values["logits_histogram"]
    assert (counts.sum(), counts[10], counts[12]) == (4, 1, 3) and (
        edges[0],
        edges[12],
        edges[-1],
    ) == (-5, 1, 5)
    assert others == [
        ("log", 5, {"speed/images_per_second": 7.0}),
        ("log", 5, {"grid": ("image", str(path))}),
        ("finish",),
    ]


def test_wandb_finds_its_run_again_and_leaves_the_mode_to_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        folder.mkdir(exist_ok=True)
        Writers(folder, log={"wandb_project": "digits"}).close()
    first, again, other = (call[1] for call in fake.calls if call[0] == "init")
    assert first["id"] == again["id"] != other["id"]
    assert again["resume"] == "allow"
    assert "mode" not in first  # WANDB_MODE=offline would lose against an argument


def events(folder: Path) -> dict:
    """Return what the one event file of a folder holds: tag -> (step, plug-in, array)."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    (file,) = folder.iterdir()
    return {
        value.tag: (
            event.step,
            value.metadata.plugin_data.plugin_name,
            tensor_util.make_ndarray(value.tensor),
        )
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    }


def check_events(found: dict) -> None:
    """Check that they are METRICS, and a picture, of step 5."""
    for tag in ("loss", "by_level/0"):
        assert found[tag] == (5, "scalars", 0.5)
    assert "by_level/1" not in found  # there was nothing to say
    step, kind, buckets = found["logits_histogram"]  # left edge, right edge, count
    assert (step, kind) == (5, "histograms")
    np.testing.assert_array_equal(buckets, [[0, 0.5, 1], [0.5, 1, 0], [1, 1.5, 3]])
    step, kind, (width, height, encoded) = found["grid"]
    assert (step, kind, int(width), int(height)) == (5, "images", 6, 4)
    pixels = np.asarray(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(pixels, np.full((4, 6, 3), 200))


def test_tensorboard_files_hold_scalars_histograms_and_pictures(tmp_path: Path) -> None:
    with Writers(tmp_path, log={"tensorboard": True}) as writers:
        writers.write(5, METRICS)
        writers.images(5, {"grid": picture(tmp_path)})
    check_events(events(tmp_path / "tensorboard"))


def test_clu_writes_the_same_with_tensorflow(tmp_path: Path) -> None:
    pytest.importorskip("clu", reason="CLU is not installed: the extra clu has it")
    pytest.importorskip("tensorflow", reason="CLU writes by TensorFlow: the extra clu has it")
    with Writers(tmp_path, log={"clu": True}) as writers:
        writers.write(5, METRICS)
        writers.images(5, {"grid": picture(tmp_path)})
    found = events(tmp_path / "clu")
    tag = next(name for name in found if name.startswith("grid"))
    check_events(found | {"grid": found[tag]})


def test_clu_gets_values_whose_histogram_is_ours_and_tensorflow_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list = []

    class FakeWriter:
        def __getattr__(self, name: str):
            return lambda *values: calls.append((name, *values))

    experimental = types.SimpleNamespace(set_visible_devices=lambda *it: calls.append(("tf", *it)))
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.config = types.SimpleNamespace(experimental=experimental)
    clu = types.ModuleType("clu.metric_writers")
    clu.create_default_writer = lambda folder: calls.append(("open", folder)) or FakeWriter()
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    monkeypatch.setitem(sys.modules, "clu.metric_writers", clu)
    with Writers(tmp_path, log={"clu": True}) as writers:
        writers.write(5, METRICS)
        writers.speed(5, {"images_per_second": 7.0})
    hidden, opened, scalars, histograms, *others = calls
    assert hidden == ("tf", [], "GPU") and opened == ("open", str(tmp_path / "clu"))
    assert scalars == ("write_scalars", 5, {"loss": 0.5, "by_level/0": 0.5})
    name, step, values, buckets = histograms
    assert (name, step, buckets) == ("write_histograms", 5, {"logits_histogram": 3})
    counts, edges = np.histogram(values["logits_histogram"], 3)
    assert counts.tolist() == [1, 0, 3] and edges.tolist() == [0, 0.5, 1, 1.5]
    speed = ("write_scalars", 5, {"speed/images_per_second": 7.0})
    assert others == [("flush",), speed, ("flush",), ("close",)]
