"""The feature space of a small classifier of the real images, and these images in it.

The classifier is trained on the real TRAIN images only; its accuracy is measured on the TEST
images. Which real images the distances are computed against:

- reference of every generated set: ALL real images (train and test). Where that is fewer than
  2,000 images, as for the 1,797 digits, there are no more.
- floor, the distance between real and real: a random half of all real images against the other
  half, averaged over several halvings. A small sample inflates the distance, about in
  proportion to 1/n_1 + 1/n_2, and a half is a smaller sample than a generated set: a perfect
  generator therefore ends below the floor, not at it.
"""

import functools
import hashlib
import json
import logging
import os
import zipfile
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import sides
from dmd2_jax.data.reading.dataset import ImageDataset, class_counts, to_model, to_uint8
from dmd2_jax.data.reading.stream import batch_at
from dmd2_jax.metrics.features.moments import FeatureStatistics, feature_statistics, fid
from dmd2_jax.networks.classifier import ConvClassifier
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import make_folder, path_of
from dmd2_jax.runtime.whole_file import whole_file
from dmd2_jax.typing import Array, Float, Int, Params, Shaped

_LOG = logging.getLogger(__name__)
_EVALUATION_BATCH = 500
_CACHE_FORMAT = 1  # part of the cache's hash: raise it when the network or its training changes
_LEAST_GAIN = 0.1  # of the way from the most frequent class's share to 1, before a warning
# All that reading a damaged .npz raises; a lying header asks for more memory than there is.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Training:
    """How a classifier is trained; the defaults are for digits-sized data.

    Attributes:
      steps: optimiser steps.
      batch_size: images a step.
      learning_rate: Adam's, the peak of a one-cycle cosine schedule.
      weight_decay: decoupled, on every parameter.
      num_features: d, dimension of the feature space.
      width: channels of the first convolution.
    """

    steps: int = 400
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    num_features: int = 48
    width: int = 32


@dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
      module: the network.
      params: its weights.
      image_shape: (h, w, c) of the images that it takes.
      test_accuracy: fraction of the real test images that it names correctly, 0..1.
    """

    module: ConvClassifier
    params: Params
    image_shape: tuple[int, int, int]
    test_accuracy: float

    def __call__(
        self, images: Shaped[Array | np.ndarray, "n h w c"]
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n num_classes"]]:
        """Return (features, logits) of images.

        Args:
          images: uint8, or float in [-1, 1]. Floats are first rounded to bytes, as if they had
            been written to a file, so that generated and real images are treated alike.

        Returns:
          features [n, d] and logits [n, num_classes], float32, in host memory.

        Raises:
          ValueError: if there are no images or they have another size.
        """
        if images.shape[1:] != self.image_shape or len(images) == 0:
            raise Refused(
                f"images have shape {images.shape}, expected [n, h, w, c] = [n >= 1, "
                f"{', '.join(map(str, self.image_shape))}]; use the classifier of this data set."
            )
        # Padding the last batch keeps one compiled program for any number of images.
        padding = -len(images) % _EVALUATION_BATCH
        outputs = []
        for begin in range(0, len(images), _EVALUATION_BATCH):
            batch = images[begin : begin + _EVALUATION_BATCH]
            batch = batch if batch.dtype == np.uint8 else to_uint8(batch)
            if len(batch) < _EVALUATION_BATCH:
                batch = jnp.pad(batch, ((0, padding), (0, 0), (0, 0), (0, 0)))
            outputs.append(_apply(self.module, self.params, batch))
        features, logits = (
            np.concatenate([np.asarray(o[i]) for o in outputs])[: len(images)] for i in range(2)
        )
        return features, logits

    def predict(self, images: Shaped[Array | np.ndarray, "n h w c"]) -> Int[np.ndarray, " n"]:
        """Return the most likely class of each image, [n]; `images` as in `__call__`."""
        return self(images)[1].argmax(axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: ConvClassifier, params: Params, images: Array) -> tuple[Array, Array]:
    return module.apply({"params": params}, to_model(images))


def train_classifier(
    dataset_train: ImageDataset,
    dataset_test: ImageDataset,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    training: Training | None = None,
) -> Classifier:
    """Train a classifier on the train split, or read the one that was trained before.

    Args:
      dataset_train: real images to train on, shifted by random eighths of their size.
      dataset_test: real images that the accuracy is measured on, and nothing else.
      seed: of weights, order and shifts, 0 .. 2**32 - 1; the same seed gives the same classifier.
      cache_dir: folder of trained classifiers, named by a hash of everything that they depend
        on; a damaged file is replaced. None: no cache.
      training: hyperparameters; None means the defaults.

    Returns:
      The classifier and its test accuracy.

    Raises:
      ValueError: if the two splits are of different size or classes, or the train split has
        images of fewer than two classes, of which there is nothing to tell apart.
    """
    training = training or Training()
    shapes = [(d.images.shape[1:], d.num_classes) for d in (dataset_train, dataset_test)]
    if shapes[0] != shapes[1]:
        raise Refused(
            f"test split has (image size, classes) {shapes[1]}, expected {shapes[0]} as in the "
            "train split; load both from one data set."
        )
    present = len(np.unique(dataset_train.labels))
    if present < 2:
        raise Refused(
            f"{dataset_train.name} has images of {present} class, expected 2 or more for a "
            "classifier, whose features would be random and FID in them meaningless; use "
            "`features=inception`, or sort the images into a folder a class."
        )
    module = ConvClassifier(dataset_train.num_classes, training.num_features, training.width)
    path = None
    if cache_dir is not None:
        digest = _content_hash(dataset_train, dataset_test, seed, training)
        path = path_of(cache_dir) / f"classifier_{digest}.npz"
    init = functools.partial(_init, module, dataset_train.images.shape[1:])
    template = jax.eval_shape(init, np.uint32(seed))
    params = _read_cache(path, template) if path else None
    if params is None:
        params = _fit(module, dataset_train, seed, training)
        if path:
            _write_cache(path, params)
    classifier = Classifier(module, params, dataset_train.images.shape[1:], float("nan"))
    correct = classifier.predict(dataset_test.images) == dataset_test.labels
    classifier = replace(classifier, test_accuracy=float(correct.mean()))
    _warn_near_chance(classifier, dataset_test)
    return classifier


def _warn_near_chance(classifier: Classifier, dataset_test: ImageDataset) -> None:
    """Warn of a classifier that hardly knows more than which class is the most frequent."""
    chance = class_counts(dataset_test).max() / len(dataset_test)
    if classifier.test_accuracy - chance <= _LEAST_GAIN * (1.0 - chance):
        _LOG.warning(
            "the classifier of %s names %.1f %% of the test images correctly, and always the most "
            "frequent class would %.1f %%: its features say little of the images, nor does FID in "
            "them. Look at the labels, or measure in the features of Inception.",
            dataset_test.name, 100 * classifier.test_accuracy, 100 * chance,
        )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(module: ConvClassifier, image_shape: tuple[int, int, int], seed: Array) -> Params:
    return module.init(jax.random.key(seed), jnp.zeros((1, *image_shape)))["params"]


def _fit(module: ConvClassifier, dataset: ImageDataset, seed: int, training: Training) -> Params:
    """Minimise the cross-entropy of randomly shifted images with AdamW."""
    limit = max(1, min(sides(dataset.resolution)) // 8)
    random = np.random.RandomState(seed)
    params = _init(module, dataset.images.shape[1:], np.uint32(seed))
    state = _optimizer(training).init(params)
    for i in range(training.steps):
        batch = batch_at(dataset, i, batch_size=training.batch_size, seed=seed)
        shifts = random.randint(-limit, limit + 1, (training.batch_size, 2))
        params, state = _step(module, training, params, state, batch, shifts)
    return params


def _optimizer(training: Training) -> optax.GradientTransformation:
    schedule = optax.cosine_onecycle_schedule(training.steps, training.learning_rate, 0.2)
    return optax.adamw(schedule, weight_decay=training.weight_decay)


# Jitted by the step, in a Python loop: on CPU, convolution gradients inside lax.scan are slow.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    module: ConvClassifier,
    training: Training,
    params: Params,
    state: optax.OptState,
    batch: dict[str, Array],
    shifts: Int[Array, "b 2"],
) -> tuple[Params, optax.OptState]:
    images = shift_images(to_model(batch["image"]), shifts)

    def loss(params: Params) -> Array:
        _, logits = module.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    updates, state = _optimizer(training).update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def shift_images(
    images: Float[Array, "b h w c"], shifts: Int[Array, "b 2"]
) -> Float[Array, "b h w c"]:
    """Shift each image by its own whole number of pixels, repeating the border.

    Args:
      images: [b, h, w, c].
      shifts: [b, 2], pixels down and to the right.

    Returns:
      [b, h, w, c]: pixel (y, x) shows what was at (y - down, x - right).
    """
    h, w = images.shape[1:3]
    rows = jnp.clip(jnp.arange(h) - shifts[:, :1], 0, h - 1)
    cols = jnp.clip(jnp.arange(w) - shifts[:, 1:], 0, w - 1)
    sample = jnp.arange(len(images))[:, None, None]
    return images[sample, rows[:, :, None], cols[:, None, :]]


def _content_hash(train: ImageDataset, test: ImageDataset, seed: int, training: Training) -> str:
    """Hash everything that the trained weights depend on."""
    header = {"format": _CACHE_FORMAT, "seed": seed, "num_classes": train.num_classes}
    digest = hashlib.sha256(json.dumps(header | asdict(training), sort_keys=True).encode())
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(repr(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:24]


def _read_cache(path: Path, template: Params) -> Params | None:
    """Read weights of exactly the template's names, shapes and type; None if there are none."""
    if not path.is_file():
        return None
    expected = traverse_util.flatten_dict(template, sep="/")
    try:
        file = fetched(path)
        with zipfile.ZipFile(file) as entries:
            size = sum(info.file_size for info in entries.infolist())
        if size > 2 * sum(array.size * array.dtype.itemsize for array in expected.values()) + 2**20:
            raise Refused(f"it unfolds to {size:,} bytes")
        with np.load(file, allow_pickle=False) as archive:
            if set(archive.files) != set(expected):
                raise Refused("other tensors than this network has")
            weights = {name: archive[name] for name in expected}
        for name, array in expected.items():
            got = weights[name]
            if got.shape != array.shape or got.dtype != array.dtype or not np.isfinite(got).all():
                raise Refused(f"tensor {name} is not as expected")
    except _DAMAGE as e:
        _LOG.warning("%s is damaged (%s); training the classifier again.", path, e)
        return None
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(weights, sep="/"))


def _write_cache(path: Path, params: Params) -> None:
    """Write weights so that a reader sees all of the file or none of it."""
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    try:
        make_folder(path.parent)
        with whole_file(path) as partial:
            np.savez(partial, **flat)
    except OSError as error:  # the cache only saves time: a full disk need not end the run
        _LOG.warning("could not keep the classifier in %s (%s).", path, error)


def real_statistics(
    classifier: Classifier, *datasets: ImageDataset
) -> tuple[FeatureStatistics, Float[np.ndarray, "n d"]]:
    """Return the statistics of all real images together, and their features.

    Args:
      classifier: the feature space.
      *datasets: the splits, usually train and test.

    Returns:
      The reference statistics of a FID, and the features for `real_fid_floor`.
    """
    features = np.concatenate([classifier(dataset.images)[0] for dataset in datasets])
    return feature_statistics(features), features


def real_fid_floor(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"] | None = None,
    *,
    repeats: int = 20,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the distance of a random half of the features to the other half.

    Args:
      features: [n, d] of real images.
      labels: [n] their classes: each class is halved, the bar for samples whose classes are as
        frequent as the real ones; it is lower and varies less than the bar without labels
        (None), where the halves differ in their classes too.
      repeats: number of random halvings.
      seed: of the halvings.

    Returns:
      (mean, standard deviation) over the halvings.

    Raises:
      ValueError: if there are fewer than 4 vectors or not one label a vector.
    """
    labels = np.zeros(len(features), np.int32) if labels is None else np.asarray(labels)
    if len(features) < 4 or labels.shape != (len(features),):
        raise Refused(
            f"features have shape {features.shape} and labels {labels.shape}, expected [n, d] and "
            "[n] with n >= 4, two a half; give one label an image, or more images."
        )
    random, distances = np.random.RandomState(seed), []
    for _ in range(repeats):
        # In a random order sorted stably by class, every second one is half of each class.
        order = random.permutation(len(features))
        order = order[np.argsort(labels[order], kind="stable")]
        sides = (features[order[::2]], features[order[1::2]])
        distances.append(fid(*(feature_statistics(side) for side in sides)))
    return float(np.mean(distances)), float(np.std(distances))
