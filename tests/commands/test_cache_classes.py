"""`dmd2 cache` of images of classes, and the way from there to pictures: latents are decoded."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.data import to_model
from dmd2_jax.data.reading import sealed_shards
from dmd2_jax.families.published.folder import write_component
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.metrics.features import inception
from dmd2_jax.metrics.features.images import open_images
from dmd2_jax.text2image.image_latents import decode_latents, encode_images
from dmd2_jax.text2image.pipeline import open_autoencoder
from tests.data.images import picture, png, write_folder
from tests.tiny import dmd2, refused, scratch

SIDE = 8  # of the images; latents are of half of it
NAMES = ("cat", "dog", "newt")
_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 4,
    "scaling_factor": 0.5,
}


@functools.cache
def vae(channels: int = 4) -> Path:
    """Return the folder of an autoencoder of random weights; do not change it."""
    folder = scratch() / f"vae_{channels}"
    model = PublishedModel.from_config(_VAE | {"latent_channels": channels})
    params = model.module.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
    write_component(model, params, folder)
    return folder


@functools.cache
def photos() -> Path:
    """Return a folder of two images for each class, larger than they will be."""
    files = {
        f"{name}/{n}.png": png(picture(10 * i + n, 12)[:, 1:-1])
        for i, name in enumerate(NAMES)
        for n in range(2)
    }
    return write_folder(scratch() / "photos", files)


def line(out: Path, *words: str) -> list[str]:
    shown = ["cache", f"--vae={vae()}", f"--images={photos()}", f"--resolution={SIDE}"]
    return [*shown, "--store=float32", "--batch_size=4", f"--out={out}", *words]


@functools.cache
def cache() -> Path:
    """Return a cache of means in two shards; do not change it."""
    out = scratch() / "class_cache"
    assert dmd2(*line(out, "--latents=mean", "--shard_examples=4")) == 0
    return out


def opened(folder: Path, **values: object) -> data.Source:
    config = {"name": "latents", "path": str(folder), "test_fraction": 0.0, **values}
    return data.load(ConfigDict(config), "all", SIDE // 2)


def test_cache_holds_the_autoencoders_latents_with_their_classes() -> None:
    source, images = opened(cache()), {"name": "image_folder", "path": str(photos())}
    assert (len(source), source.num_classes, source.channels) == (6, 3, 4)
    assert source.class_names == NAMES and source.null is None
    batch = source.examples(np.arange(6))
    assert batch["label"].tolist() == [0, 0, 1, 1, 2, 2]
    folder = data.load(ConfigDict(images | {"resize": "crop"}), "all", SIDE)
    pixels = to_model(folder.examples(np.arange(6))["image"])
    decoder = open_autoencoder(vae())
    expected = encode_images(decoder.vae, decoder.vae_params, pixels)
    np.testing.assert_allclose(batch["latent"], expected, atol=1e-6)


def test_draws_are_of_the_seed_and_the_number_alone(tmp_path: Path) -> None:
    assert dmd2(*line(tmp_path / "a", "--shard_examples=4")) == 0
    assert dmd2(*line(tmp_path / "b", "--batch_size=3", "--shard_examples=6")) == 0
    one, other = (opened(tmp_path / n).examples(np.arange(6))["latent"] for n in "ab")
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(one - opened(cache()).examples(np.arange(6))["latent"]).max() > 1e-3


def test_test_split_takes_of_every_class() -> None:
    config = ConfigDict({"name": "latents", "path": str(cache()), "test_fraction": 0.5})
    for split in ("train", "test"):
        labels = data.load(config, split, SIDE // 2).known_labels()
        assert sorted(labels) == [0, 1, 2]


def test_killed_command_goes_on_and_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, words = cache(), ("--latents=mean", "--shard_examples=4")
    write = sealed_shards.ShardFolder.write

    def interrupted(self: sealed_shards.ShardFolder, number: int, *rest: object) -> object:
        if number == 1:
            raise KeyboardInterrupt
        return write(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(sealed_shards.ShardFolder, "write", interrupted)
        assert dmd2(*line(tmp_path / "c", *words)) == 130
    assert "latents 'mean', now 'sample'" in refused(
        capsys, *line(tmp_path / "c", "--shard_examples=4")
    )
    assert dmd2(*line(tmp_path / "c", *words)) == 0
    assert (tmp_path / "c" / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()


def test_labels_that_were_changed_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for file in cache().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"label": np.zeros(6, np.int32)}, tmp_path / "labels.safetensors")
    with pytest.raises(ValueError, match="labels.safetensors .another digest"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "words, message",
    [
        (("--vae=",), "got neither --pipeline nor --vae"),
        (("--images=", "--prompts=x.txt"), "--prompts='x.txt' without --pipeline"),
        (("--resolution=0",), "expected images of classes and their size in pixels"),
        (("--resolution=9",), "expected a multiple of 2"),
        (("--resolution=16",), "pixels, expected"),  # enlarging is to be asked for
    ],
)
def test_cache_refuses(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *line(tmp_path / "x", *words, "--dry_run"))


def _mean_colour(resize: str, params: object, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    features = to_model(images).mean(axis=(1, 2))
    return features, features


def test_a_student_in_latents_is_trained_and_its_images_are_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = write_folder(tmp_path / "real", {f"{n}.png": png(picture(n, SIDE)) for n in range(6)})
    values: Mapping[str, object] = {
        "data.name": "latents",
        "data.path": cache(),
        "data.test_fraction": 0.0,
        "model.vae": vae(),
        "model.width": 8,
        "model.depth": 1,
        "model.heads": 1,
        "model.resolution": SIDE // 2,
        "model.image_channels": 4,
        "model.num_classes": 3,
        "mesh.data": 1,
    }
    words = [f"--config.{key}={value}" for key, value in values.items()]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    own = ["steps=2", "batch_size=4", "sampler_steps=2"]
    own = [f"--config.teacher.{word}" for word in own]
    assert dmd2("train-teacher", "--config=digits_sit", f"--workdir={teacher}", *words, *own) == 0
    own = [*own, f"--config.teacher.weights={teacher}"]
    own += ["--config.distill.cycles=1", "--config.distill.batch_size=4"]
    own += ["--config.distill.critic_turns=1", "--config.distill.gan_head_channels=4"]
    assert dmd2("distill", "--config=digits_sit", f"--workdir={student}", *words, *own) == 0
    record = json.loads((student / "data.json").read_text())
    assert record["class_names"] == list(NAMES)

    shown = ["sample", f"--workdir={student}", "--classes=newt", "--num=3"]
    assert dmd2(*shown, f"--out={tmp_path / 'one.npz'}") == 0
    with np.load(tmp_path / "one.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.shape == (3, SIDE, SIDE, 3) and labels.tolist() == [2, 2, 2]
    bare = [word for word in shown if not word.startswith("--classes")]
    other = refused(capsys, *bare, f"--vae={vae(6)}", f"--out={tmp_path / 'x.png'}")
    assert "latents of 6 channels, expected 4" in other
    # The picture is the autoencoder's of what the student makes.
    from dmd2_jax.sampling.runs import open_run
    from dmd2_jax.sampling.samplers import sample_noise, student_sampler

    run, decoder = open_run(student), open_autoencoder(vae())
    noise = sample_noise(0, jnp.arange(3), 1, run.family.image_shape)
    sampler = student_sampler(run.family, run.config)
    made = sampler.run(run.load(), noise, run.family.cond(np.full(3, 2)))
    expected = np.asarray(decode_latents(decoder.vae, decoder.vae_params, made))
    expected = np.round(np.clip(127.5 * (expected + 1), 0, 255))
    assert np.abs(expected - images.astype(np.float32)).max() <= 1

    assert dmd2(*shown, f"--out={tmp_path / 'images'}/") == 0
    assert len(open_images(str(tmp_path / "images"))) == 3

    measured = ["evaluate", f"--workdir={student}", "--which=student", "--num=6"]
    assert "classifier" in refused(capsys, *measured)
    monkeypatch.setattr(inception, "_apply", _mean_colour)
    monkeypatch.setattr(inception, "FEATURES", 3)
    monkeypatch.setattr("dmd2_jax.evaluate.spaces.read_inception", lambda path: {})
    measured += ["--features=inception", "--inception_weights=x.pth", "--metrics=fid"]
    assert "expected --reference=PATH" in refused(capsys, *measured)
    assert dmd2(*measured, f"--reference={real}") == 0
    figures = json.loads((student / "metrics.json").read_text())
    assert figures["student_fid"] > 0 and figures["student_num_samples"] == 6
