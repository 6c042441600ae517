"""CLIP and DINOv2 as feature networks of `dmd2 evaluate`: what they read, and what is refused."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from dmd2_jax import metrics
from dmd2_jax.evaluate.encoders import open_encoder
from dmd2_jax.evaluate.evaluate import judge
from dmd2_jax.evaluate.measured import FileImages
from dmd2_jax.evaluate.spaces import RealSide, Space
from dmd2_jax.evaluate.table import metrics_table
from dmd2_jax.families.published.folder import write_component
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.metrics.features.extractor import collect
from dmd2_jax.runtime.sharding import make_mesh
from tests.data.images import png, write_folder
from tests.networks.test_dinov2 import TINY
from tests.tiny import RECIPE, refused, scratch

DINOV2 = {"architectures": ["Dinov2Model"], **TINY}
_CLIP = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
_CLIP |= {"num_hidden_layers": 1, "image_size": 8, "patch_size": 4, "projection_dim": 6}
CLIP = {"architectures": ["CLIPVisionModelWithProjection"], **_CLIP}


@functools.cache
def encoder(name: str, side: int) -> Path:
    """A folder of a network of random weights, whose preprocessor makes images of this side."""
    model = PublishedModel.from_config(DINOV2 if name == "dinov2" else CLIP)
    inputs = jax.tree.map(lambda it: np.zeros(it.shape, it.dtype), model.example_inputs())
    params = model.module.init(jax.random.key(3), *inputs)
    folder = scratch() / name
    write_component(model, params, folder)
    settings = {"size": {"shortest_edge": side + 4}, "crop_size": side}
    settings |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def images(number: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (number, 6, 6, 3)).astype(np.uint8)


def prepared(batch: np.ndarray, side: int) -> np.ndarray:
    """Whole images at that side by Pillow's bicubic, normalised."""
    made = [
        Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in batch
    ]
    return (np.stack(made) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]


@pytest.mark.parametrize(("name", "side"), [("dinov2", 12), ("clip", 8)])
def test_open_encoder_reads_whole_images_at_the_side_of_its_preprocessor(
    name: str, side: int
) -> None:
    extractor = open_encoder(str(encoder(name, side)), make_mesh({"data": 1}, jax.devices()[:1]))
    batch = images(3, 0)
    features, logits = extractor(batch)
    x = prepared(batch, side).astype(np.float32)
    model = PublishedModel.from_config(DINOV2 if name == "dinov2" else CLIP)
    expected = model.module.apply(extractor.params, x)
    expected = expected if name == "dinov2" else expected.image_embeds
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert logits is None and features.shape[1] == extractor.dimension
    assert np.ptp(features, axis=0).max() > 1e-3


def folders(place: Path) -> tuple[Path, Path]:
    """Return a folder of images, and one of those that they are compared with."""
    sides = {"made": images(40, 1) // 2, "real": images(40, 2)}
    for side, batch in sides.items():
        write_folder(place / side, {f"{i:02d}.png": png(it) for i, it in enumerate(batch)})
    return place / "made", place / "real"


def test_judge_measures_ratios_in_every_encoder_and_their_mean(tmp_path: Path) -> None:
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    networks = {"dinov2": 12, "clip": 8}
    spaces = [
        Space(open_encoder(str(encoder(*it)), mesh), ("fd_ratio",), prefix=f"{it[0]}_")
        for it in networks.items()
    ]
    made, real = (FileImages(str(folder), 0, 0) for folder in folders(tmp_path))
    sets = [collect(it.extractor, real.batches(), {"features"}, real.describe) for it in spaces]
    found = judge(made, spaces, RealSide("real", tuple(sets)))
    for space, its in zip(spaces, sets, strict=True):
        ours = collect(space.extractor, made.batches(), {"features"}, made.describe)
        ratio = metrics.compute(["fd_ratio"], its, ours)["fd_ratio"]
        assert found[f"{space.prefix}fd_ratio"] == pytest.approx(ratio, rel=1e-9)
    both = [found[f"{name}_fd_ratio"] for name in networks]
    assert found["fd_ratio_mean"] == pytest.approx(np.mean(both), rel=1e-12)
    assert both[0] != pytest.approx(both[1], rel=0.01)
    table = metrics_table({f"images_{key}": value for key, value in found.items()})
    assert "mean FD ratio" in table and f"{np.mean(both):.2f}" in table


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--metrics=fid", "--encoders=a"], "expected fd_ratio among them"),
        (["--encoders=x/a,y/a"], "--encoders has a more than once"),
        (["--encoders=a", "--write_reference=r.npz"], "expected one feature network"),
    ],
)
def test_encoders_are_for_ratios_alone_and_of_different_names(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", f"--images={tmp_path}", f"--config={RECIPE}", "--metrics=fd_ratio")
    message = refused(capsys, *words, f"--out={tmp_path / 'figures.json'}", *more)
    assert said in message


@pytest.mark.parametrize(
    ("name", "side", "said"),
    [("dinov2", 10, "10 pixels and 3 channels, config.json expects a multiple of 4"),
     ("clip", 12, "12 pixels and 3 channels, config.json expects 8")],
)  # fmt: skip
def test_open_encoder_refuses_a_preprocessor_of_another_model(
    name: str, side: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        open_encoder(str(encoder(name, side)), make_mesh({"data": 1}, jax.devices()[:1]))


def test_open_encoder_refuses_another_kind_of_network(tmp_path: Path) -> None:
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    (tmp_path / "config.json").write_text('{"architectures": ["ViTModel"]}')
    with pytest.raises(ValueError, match="'ViTModel', expected 'CLIPModel' or"):
        open_encoder(str(tmp_path), mesh)
    with pytest.raises(ValueError, match="nowhere"):
        open_encoder(str(tmp_path / "nowhere"), mesh)
