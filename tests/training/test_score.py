"""FID while a run trains: what it is equal to, what it holds in memory, and what it refuses."""

import functools
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from dmd2_jax.metrics.features import real
from dmd2_jax.metrics.features.classifier import Training
from dmd2_jax.metrics.features.moments import feature_statistics, fid
from dmd2_jax.metrics.features.real import Reference, open_reference
from dmd2_jax.recipe.open import Recipe, open_recipe, uniform_labels
from dmd2_jax.sampling.samplers import Sampler, sample_images, student_sampler
from dmd2_jax.training import score as module
from dmd2_jax.training.score import training_score
from dmd2_jax.typing import Params
from tests.data.images import picture, png, write_folder
from tests.metrics.plain import precision_recall
from tests.tiny import RECIPE, dmd2, get_config, refused, scratch

NUM = 61  # no multiple of anything here
EVERY = "--config.log.evaluate_every=1"


@functools.cache
def opened() -> tuple[Recipe, Sampler, Params]:
    """A recipe on four devices, and a student that nobody trained."""
    config = get_config()
    config.mesh.data = 4
    config.log.evaluate_every = 1
    config.evaluate.training_samples = NUM
    config.evaluate.batch_size = 7
    recipe = open_recipe(config, config.distill.batch_size)
    params = recipe.family.init(jax.random.key(0))
    return recipe, student_sampler(recipe.family, config), jax.tree.map(np.asarray, params)


@functools.cache
def reference() -> Reference:
    """The real side, in the features of a classifier that is hardly trained: they are features."""
    quick = functools.partial(real.train_classifier, training=Training(steps=20, batch_size=32))
    with mock.patch.object(real, "train_classifier", quick):
        return open_reference(opened()[0].config)


def scored(sampler: Sampler | None = None) -> dict[str, float]:
    """The figures of the student, as its training would report them."""
    recipe, own, params = opened()
    with mock.patch.object(module, "open_reference", return_value=reference()):
        score = training_score(recipe, scratch(), sampler or own, lambda state: state)
    assert score is not None
    return score(params)


@functools.cache
def expected() -> dict[str, float]:
    """The same with all images in memory at once, on one device."""
    recipe, sampler, params = opened()
    labels, seed = uniform_labels(NUM, recipe.family.num_classes), recipe.config.seed
    images = sample_images(sampler, recipe.family, params, labels, seed=seed, batch_size=30)
    features, logits = reference().classifier(images)
    real = reference().features
    some = real[np.sort(np.random.RandomState(seed).permutation(len(real))[:NUM])]
    return {
        "fid": fid(reference().statistics, feature_statistics(features)),
        "class_accuracy": float((logits.argmax(axis=-1) == labels).mean()),
        **precision_recall(some, features, 3),
    }


def test_training_score_is_that_of_all_images_in_memory_at_once() -> None:
    assert scored() == pytest.approx(expected(), rel=1e-5)


def test_training_score_samples_on_the_devices_of_the_run() -> None:
    _, sampler, _ = opened()
    devices: set[frozenset[jax.Device]] = set()

    def run(*arguments: Any) -> jax.Array:
        made = sampler.run(*arguments)
        devices.add(frozenset(made.sharding.device_set))
        assert len(made.addressable_shards[0].data) == len(made) // 4
        return made

    scored(sampler._replace(run=run))
    assert devices == {frozenset(jax.devices()[:4])}


def test_training_score_never_holds_more_than_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[weakref.ref, ...]] = []
    alive: list[int] = []

    class Watched(module.Collector):
        def add(self, images: Any, labels: Any = None) -> None:
            # A batch is a view of what came from the devices.
            whole = images if images.base is None else images.base
            seen.append((weakref.ref(images), weakref.ref(whole)))
            alive.append(sum(any(it() is not None for it in pair) for pair in seen))
            super().add(images, labels)

    monkeypatch.setattr(module, "Collector", Watched)
    scored()
    assert len(seen) == 8  # of 8 images, as four devices take 7 at a time
    assert max(alive) <= 2


@pytest.mark.filterwarnings("ignore:.*covariance lacks rank")  # of one process's share alone
@pytest.mark.parametrize("most", [2000, 40, 20])  # all rows, some of the second's, none of them
def test_training_score_of_two_processes_is_that_of_one(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes its share, and what they tell each other adds up."""
    monkeypatch.setattr(module, "_MOST", most)
    alone = scored()
    assert most < NUM or alone == pytest.approx(expected(), rel=1e-5)

    told: list[Any] = []

    def from_all(value: Any) -> list[Any]:
        if isinstance(value, str):  # the classifier's name
            return [value, value]
        told.append(json.loads(json.dumps(value)))
        return told

    monkeypatch.setattr(module, "from_all", from_all)
    for number in range(2):  # the second one hears of both
        monkeypatch.setattr(module, "_place", lambda number=number: (number, 2))
        found = scored()
    assert [part["count"] for part in told] == [30, 31]
    assert sum(len(part["features"]) for part in told) == min(most, NUM)
    assert found == pytest.approx(alone, rel=1e-5)


def test_training_score_refuses_processes_with_classifiers_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "from_all", lambda value: [value, "classifier-other/none"])
    with pytest.raises(ValueError, match=r"different classifiers, classifier-.*other/none"):
        scored()


@pytest.mark.parametrize("command", ["train-teacher", "distill"])
def test_dry_run_refuses_to_measure_latents(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = SimpleNamespace(name="latents x", channels=4, num_classes=0, null={})
    words = (f"--config={RECIPE.parent / 'training' / 'test_text_training.py'}", "--dry_run", EVERY)
    words += ("--config.model.pipeline=sd15",)
    with mock.patch("dmd2_jax.recipe.open.data.load", return_value=latents):
        message = refused(capsys, command, *words, f"--workdir={tmp_path / 'run'}")
    assert "log.evaluate_every=1 with config.data.name=latents" in message
    assert "set --config.log.evaluate_every=0" in message
    assert list(tmp_path.iterdir()) == []


def test_images_of_one_class_are_refused_as_no_classifier_learns_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{i:02d}.png": png(picture(i, 8, 1)) for i in range(20)}
    place = write_folder(tmp_path / "faces", files)
    words = [f"--config={RECIPE}", "--config.data.name=image_folder", f"--config.data.path={place}"]
    message = refused(capsys, "evaluate", *words, f"--images={place}", f"--out={tmp_path / 'x'}")
    assert "faces has images of 1 class, expected 2 or more" in message
    assert "--features=inception" in message
    words += ["--config.model.num_classes=0", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    message = refused(capsys, "train-teacher", *words, EVERY)
    assert "log.evaluate_every=1 with image_folder faces, which has 1 class" in message
    assert dmd2("train-teacher", *words) == 0
