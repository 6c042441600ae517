"""Latents with classes: what is read of EDM2's and REPA's layout, and what is refused."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.data import inputs_of, labels_of
from tests.tiny import dmd2, refused

LABELS = [2, 0, 1, 1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files of mean and std [8, 4, 4] with three classes."""
    names = [f"00000/img-mean-std-{n:08d}.npy" for n in range(len(LABELS))]
    (tmp_path / "00000").mkdir()
    for n, name in enumerate(names):
        mean = np.full((4, 4, 4), n, np.float32) + np.arange(4, dtype=np.float32)[:, None, None]
        np.save(tmp_path / name, np.concatenate([mean, np.full_like(mean, 1e-3)]))
    labels = [list(pair) for pair in zip(names, LABELS, strict=True)]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    return tmp_path


def load(path: Path, name: str = "class_latents", split: str = "all", resolution: int = 4):
    config = {"name": name, "path": str(path), "test_fraction": 0.0}
    return data.load(ConfigDict(config), split, resolution)


def test_latents_are_scaled_draws_about_the_mean_with_their_classes(folder: Path) -> None:
    source = load(folder)
    assert (source.resolution, source.channels, source.num_classes, len(source)) == (4, 4, 3, 4)
    batch = source.examples(np.array([3, 0]))
    assert labels_of(batch).tolist() == [1, 2]
    latents = inputs_of(batch)
    assert latents.shape == (2, 4, 4, 4) and latents.dtype == np.float32
    expected = 0.18215 * (np.array([3, 0])[:, None] + np.arange(4))  # mean of file + channel
    np.testing.assert_allclose(latents.mean(axis=(1, 2)), expected, atol=2e-4)
    spread = (latents / 0.18215).std(axis=(1, 2))
    assert spread.min() > 5e-4 and spread.max() < 2e-3


def test_an_example_is_a_function_of_its_number(folder: Path) -> None:
    source = load(folder)
    both = source.examples(np.array([1, 2]))["latent"]
    np.testing.assert_array_equal(source.examples(np.array([2]))["latent"][0], both[1])
    assert np.abs(both[0] - both[1]).min() > 0


def test_zip_is_read_as_the_folder(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "latents.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in [folder / "dataset.json", *sorted(folder.rglob("*.npy"))]:
            archive.write(file, str(file.relative_to(folder)))
    numbers = np.arange(4)
    for name, array in load(packed).examples(numbers).items():
        np.testing.assert_array_equal(array, load(folder).examples(numbers)[name])
    assert load(packed).listing == load(folder).listing


def test_scale_is_what_follows_the_colon(folder: Path) -> None:
    plain, other = load(folder), load(folder, "class_latents:0.5")
    ratio = other.examples(np.array([1]))["latent"] / plain.examples(np.array([1]))["latent"]
    np.testing.assert_allclose(ratio, 0.5 / 0.18215, rtol=1e-5)
    with pytest.raises(ValueError, match="expected a scale above 0"):
        load(folder, "class_latents:-1")


def test_latents_without_a_std_are_taken_as_they_are(folder: Path) -> None:
    file = folder / "00000" / "img-mean-std-00000002.npy"
    plain = np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float16)
    np.save(file, plain)
    latent = load(folder).examples(np.array([2]))["latent"][0]
    np.testing.assert_allclose(latent, 0.18215 * plain.transpose(1, 2, 0), rtol=1e-3)


@pytest.mark.parametrize(
    "array, message",
    [
        (
            np.zeros((8, 4, 5), np.float32),
            r"shape \(4, 5, 4\), expected \(4, 4, 4\)",
        ),
        (np.zeros((8, 4, 4), np.uint8), "uint8 of shape"),
        (np.zeros((8, 6, 6), np.float32), r"latents of shape \(6, 6, 4\)"),
        (np.full((8, 4, 4), np.nan, np.float32), "is not finite"),
        (np.array([{}], object), "cannot be read"),  # a pickle
    ],
)
def test_files_of_another_kind_are_refused_by_name(
    folder: Path, array: np.ndarray, message: str
) -> None:
    np.save(folder / "00000" / "img-mean-std-00000001.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"img-mean-std-00000001\.npy.*{message}"):
        load(folder).examples(np.array([0, 1]))


def test_folders_without_labels_or_of_another_size_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="latents are 4 wide, expected config.model.resolution=8"):
        load(folder, resolution=8)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(folder / "absent")
    (folder / "dataset.json").unlink()
    with pytest.raises(ValueError, match="has 4 .npy files and no dataset.json"):
        load(folder)


def test_a_small_sit_is_trained_on_latents_with_classes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"width": 8, "depth": 1, "heads": 1, "resolution": 4, "image_channels": 4}
    values = {f"model.{key}": value for key, value in sizes.items()} | {
        "model.num_classes": 3,
        "data.name": "class_latents",
        "data.path": folder,
        "data.test_fraction": 0.0,
        "teacher.steps": 2,
        "teacher.batch_size": 4,
        "teacher.sampler_steps": 2,
        "mesh.data": 1,
    }
    words = [f"--config.{key}={value}" for key, value in values.items()]
    workdir = tmp_path / "run"
    assert dmd2("train-teacher", "--config=digits_sit", f"--workdir={workdir}", *words) == 0
    assert list(workdir.glob("grid_*.png"))
    message = refused(capsys, "sample", f"--workdir={workdir}", f"--out={tmp_path / 'x.png'}")
    assert "makes latents of 4 channels, expected images" in message
    again = [*words, "--config.log.evaluate_every=1", "--dry_run"]
    message = refused(
        capsys, "train-teacher", "--config=digits_sit", f"--workdir={tmp_path / 'y'}", *again
    )
    assert "latents of 4 channels, expected images" in message
    message = refused(capsys, "data", "--config=digits_sit", *words[:9])
    assert "has latents of 4 channels, expected a source of images" in message
