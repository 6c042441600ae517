"""The feature space of a small classifier, and the figures of a set of samples in it.

The classifier is trained on the real TRAIN images only; its accuracy is measured on the TEST
images. Which real images the distances are computed against:

- reference of every generated set: ALL real images (train and test). Where that is fewer than
  2,000 images, as for the 1,797 digits, there are no more.
- floor, the distance between real and real: a random half of all real images against the other
  half, averaged over several halvings. A small sample inflates the distance by about
  1/n_1 + 1/n_2, and a half is a smaller sample than a generated set: so the floor is a bar that
  a perfect generator passes, not one that it just reaches.
"""

import functools
import hashlib
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from dmd2_jax.data.dataset import ImageDataset, batch_at, to_model, to_uint8
from dmd2_jax.evaluation.fid import FeatureStatistics, feature_statistics, fid
from dmd2_jax.networks.classifier import ConvClassifier
from dmd2_jax.typing import Array, Float, Int, Key, Params, Shaped

_LOG = logging.getLogger(__name__)
_EVALUATION_BATCH = 500
_CACHE_FORMAT = 1  # part of the cache's hash: raise it when the network or its training changes


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
      test_accuracy: fraction of the real test images that it names correctly, 0..1.
    """

    module: ConvClassifier
    params: Params
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
        """
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
      seed: of weights, order and shifts; the same seed gives the same classifier.
      cache_dir: folder of trained classifiers, named by a hash of everything that they depend
        on; a damaged file is replaced. None: no cache.
      training: hyperparameters; None means the defaults.

    Returns:
      The classifier and its test accuracy.

    Raises:
      ValueError: if the two splits are of different size or classes.
    """
    training = training or Training()
    shapes = [(d.images.shape[1:], d.num_classes) for d in (dataset_train, dataset_test)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"test split has (image size, classes) {shapes[1]}, expected {shapes[0]} as in the "
            "train split; load both from one data set."
        )
    module = ConvClassifier(dataset_train.num_classes, training.num_features, training.width)
    path = None
    if cache_dir is not None:
        digest = _content_hash(dataset_train, dataset_test, seed, training)
        path = Path(cache_dir) / f"classifier_{digest}.npz"
    params = _read_cache(path, _init(module, dataset_train, seed)) if path else None
    cached = params is not None
    if not cached:
        params = _fit(module, dataset_train, seed, training)
    classifier = Classifier(module, params, test_accuracy=float("nan"))
    correct = classifier.predict(dataset_test.images) == dataset_test.labels
    if path and not cached:
        _write_cache(path, params)
    return Classifier(module, params, float(correct.mean()))


def _init(module: ConvClassifier, dataset: ImageDataset, seed: int) -> Params:
    image = jnp.zeros((1, *dataset.images.shape[1:]))
    return jax.jit(module.init)(jax.random.key(seed), image)["params"]


def _fit(module: ConvClassifier, dataset: ImageDataset, seed: int, training: Training) -> Params:
    """Minimise the cross-entropy of randomly shifted images with AdamW."""
    schedule = optax.cosine_onecycle_schedule(training.steps, training.learning_rate, 0.2)
    optimizer = optax.adamw(schedule, weight_decay=training.weight_decay)
    shift = max(1, dataset.resolution // 8)

    # A jitted step in a Python loop: on CPU, convolution gradients inside lax.scan are slow.
    @jax.jit
    def step(
        params: Params, state: optax.OptState, key: Key, images: Array, labels: Array
    ) -> tuple[Params, optax.OptState]:
        images = random_shift(key, to_model(images), shift)

        def loss(params: Params) -> Array:
            _, logits = module.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = _init(module, dataset, seed)
    state = optimizer.init(params)
    keys = jax.random.split(jax.random.key(seed + 1), training.steps)
    for i in range(training.steps):
        batch = batch_at(dataset, i, batch_size=training.batch_size, seed=seed)
        params, state = step(params, state, keys[i], batch["image"], batch["label"])
    return params


def random_shift(key: Key, images: Float[Array, "b h w c"], limit: int) -> Float[Array, "b h w c"]:
    """Shift each image by its own whole number of pixels, repeating the border.

    Args:
      key: random key.
      images: [b, h, w, c].
      limit: largest shift in pixels, in each direction.

    Returns:
      [b, h, w, c].
    """
    b, h, w, c = images.shape
    padded = jnp.pad(images, ((0, 0), (limit, limit), (limit, limit), (0, 0)), mode="edge")
    corners = jax.random.randint(key, (b, 2), 0, 2 * limit + 1)

    def crop(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h, w, c))

    return jax.vmap(crop)(padded, corners)


def _content_hash(train: ImageDataset, test: ImageDataset, seed: int, training: Training) -> str:
    """Hash everything that the trained weights depend on."""
    header = {"format": _CACHE_FORMAT, "seed": seed, "num_classes": train.num_classes}
    digest = hashlib.sha256(json.dumps(header | asdict(training), sort_keys=True).encode())
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:24]


def _read_cache(path: Path, template: Params) -> Params | None:
    """Read weights of exactly the template's names, shapes and type; None if there are none."""
    if not path.is_file():
        return None
    expected = traverse_util.flatten_dict(template, sep="/")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if set(archive.files) != set(expected):
                raise ValueError("other tensors than this network has")
            weights = {name: archive[name] for name in expected}
        for name, array in expected.items():
            got = weights[name]
            if got.shape != array.shape or got.dtype != array.dtype or not np.isfinite(got).all():
                raise ValueError(f"tensor {name} is not as expected")
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as e:
        _LOG.warning("%s is damaged (%s); training the classifier again.", path, e)
        return None
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(weights, sep="/"))


def _write_cache(path: Path, params: Params) -> None:
    """Write weights so that a reader sees all of the file or none of it."""
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(file, **flat)
        os.replace(file.name, path)
    except OSError as e:  # the cache only saves time: a full disk need not end the run
        _LOG.warning("could not keep the classifier in %s (%s).", path, e)


def real_statistics(
    classifier: Classifier, *datasets: ImageDataset
) -> tuple[FeatureStatistics, Float[np.ndarray, "n d"]]:
    """Return the statistics of all real images together, and their features.

    Args:
      classifier: the feature space.
      *datasets: the splits, usually train and test.

    Returns:
      The reference statistics of `distribution_report`, and the features for `real_fid_floor`.
    """
    features = np.concatenate([classifier(dataset.images)[0] for dataset in datasets])
    return feature_statistics(features), features


def real_fid_floor(
    features: Float[np.ndarray, "n d"], *, repeats: int = 20, seed: int = 0
) -> tuple[float, float]:
    """Return the distance of a random half of the features to the other half.

    Args:
      features: [n, d] of real images.
      repeats: number of random halvings.
      seed: of the halvings.

    Returns:
      (mean, standard deviation) over the halvings.

    Raises:
      ValueError: if there are fewer than 4 vectors.
    """
    if len(features) < 4:
        raise ValueError(
            f"{len(features)} feature vectors, expected at least 4, two a half; give more images."
        )
    random, half, distances = np.random.RandomState(seed), len(features) // 2, []
    for _ in range(repeats):
        order = random.permutation(len(features))
        sides = (features[order[:half]], features[order[half:]])
        distances.append(fid(*(feature_statistics(side) for side in sides)))
    return float(np.mean(distances)), float(np.std(distances))


def distribution_report(
    real_statistics: FeatureStatistics,
    images: Shaped[Array | np.ndarray, "n h w c"],
    labels: Int[Array | np.ndarray, " n"],
    classifier: Classifier,
) -> Mapping[str, float]:
    """Compare generated images with the real distribution.

    Args:
      real_statistics: reference, of all real images in this classifier's feature space.
      images: [n, h, w, c] generated, uint8 or float in [-1, 1]; n of 2,000 or more.
      labels: [n] the classes that were asked for.
      classifier: the feature space.

    Returns:
      fid: Fréchet distance to the reference; class_accuracy: fraction of the images that the
      classifier takes for the class that was asked for; num_samples: n.

    Raises:
      ValueError: if images and labels differ in number, or a float image is not finite.
    """
    if len(images) != len(labels):
        raise ValueError(
            f"{len(labels)} labels, expected {len(images)}, one an image; pass the labels that "
            "the images were sampled with."
        )
    if images.dtype != np.uint8 and not bool(jnp.isfinite(images).all()):
        raise ValueError(
            "images hold NaN or infinity, expected values in [-1, 1]; the generator has diverged."
        )
    features, logits = classifier(images)
    correct = logits.argmax(axis=-1) == np.asarray(labels)
    return {
        "fid": fid(real_statistics, feature_statistics(features)),
        "class_accuracy": float(correct.mean()),
        "num_samples": len(images),
    }
