"""Figures of one network against the real data: what `dmd2 evaluate` and training runs report.

The distances are in the feature space of a small classifier that is trained on the real images
(see `evaluation.features`), so they compare models of one data set and nothing else.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config.refused import Refused
from dmd2_jax.data import Batch
from dmd2_jax.metrics.features.classifier import (
    Classifier,
    distribution_report,
    real_fid_floor,
    real_statistics,
    train_classifier,
)
from dmd2_jax.metrics.features.extractor import Collector, Extractor, classifier_extractor
from dmd2_jax.metrics.features.moments import FeatureStatistics, fid
from dmd2_jax.recipe.open import Family, Recipe, uniform_labels
from dmd2_jax.runtime.distributed import from_all, on_first, to_host
from dmd2_jax.runtime.sharding import batch_sharding, make_mesh, replicated
from dmd2_jax.sampling.samplers import Sampler, sample_images, sample_noise
from dmd2_jax.typing import Params, PyTree

__all__ = ["Reference", "SampledImages", "measure", "open_reference", "training_score"]


class Reference(NamedTuple):
    """The real images of a data set, and the feature space made from them.

    Attributes:
      classifier: the feature space.
      statistics: of all real images, train and test.
      fid_floor: mean distance from a random half of the real images to the other half.
    """

    classifier: Classifier
    statistics: FeatureStatistics
    fid_floor: float


def open_reference(config: ConfigDict, cache: str | Path | None = None) -> Reference:
    """Load the data that a config names, and train its classifier.

    Args:
      config: `config.data` counts.
      cache: folder of classifiers that were trained before; None: none.

    Returns:
      The reference.

    Raises:
      ValueError: if the data are refused.
      FileNotFoundError: if data files are missing.
    """
    side = config.model.resolution
    train, test = (data.to_memory(data.load(config.data, s, side)) for s in ("train", "test"))
    classifier = train_classifier(train, test, cache_dir=cache)
    statistics, features = real_statistics(classifier, train, test)
    return Reference(classifier, statistics, real_fid_floor(features)[0])


def measure(
    sampler: Sampler,
    family: Family,
    params: Params,
    reference: Reference,
    *,
    num_samples: int,
    batch_size: int,
    seed: int,
) -> dict[str, float]:
    """Sample, time and judge one network, on one device and with all its images in memory.

    Args:
      sampler: from `sample.teacher_sampler` or `sample.student_sampler`.
      family: the networks.
      params: the weights.
      reference: from `open_reference`.
      num_samples: images, every class alike often.
      batch_size: images at a time.
      seed: of the noise.

    Returns:
      fid, class_accuracy (conditional models only), num_samples, nfe, and seconds_per_image,
      without compilation.
    """
    labels = uniform_labels(num_samples, family.num_classes)
    options = {"seed": seed, "batch_size": min(batch_size, num_samples)}
    sample_images(sampler, family, params, labels[: options["batch_size"]], **options)
    start = time.perf_counter()
    images = sample_images(sampler, family, params, labels, **options)
    seconds = time.perf_counter() - start
    report = dict(distribution_report(reference.statistics, images, labels, reference.classifier))
    if not family.num_classes:
        del report["class_accuracy"]
    return report | {"nfe": sampler.nfe, "seconds_per_image": seconds / num_samples}


class SampledImages:
    """The images that a network makes of noise, a batch at a time over a mesh of devices.

    Image i depends on (seed, i) alone: not on the batch size, nor on the devices. It is one of the
    sets that `dmd2 evaluate` measures (`evaluate_images.Measured`), and what a training run
    measures itself by.
    """

    def __init__(
        self,
        key: str,
        name: str,
        family: Family,
        sampler: Sampler,
        load: Callable[[], Params],
        *,
        num: int,
        batch_size: int,
        seed: int,
        mesh: Mesh,
        step: int | None = None,
        first: int = 0,
        timed: bool = True,
    ) -> None:
        """Take the network; nothing is loaded yet.

        Args:
          key: in front of its figures.
          name: for messages.
          family: the network.
          sampler: from noise to images.
          load: reads the weights.
          num: images, every class alike often.
          batch_size: images at a time; made a multiple of the devices.
          seed: of the noise.
          mesh: over which images are split.
          step: of the checkpoint that it is from, if it is from one.
          first: number of the first image.
          timed: whether the time of an image is wanted, for which one batch more is made, so that
            compilation is not in it.
        """
        self.key, self.name, self.step = key, name, step
        self.resolution, _, self.channels = family.image_shape
        self.conditional = bool(family.num_classes)
        self._family, self._sampler, self._load = family, sampler, load
        self._num, self._seed, self._mesh, self._first = num, seed, mesh, first
        self._timed, self._seconds = timed, 0.0
        self._batch_size = _whole(min(batch_size, num), mesh)

    def __len__(self) -> int:
        return self._num

    def batches(self) -> Iterator[Batch]:
        """Yield {"image": float [b, h, w, c], "label": [b]}; no batch is kept."""
        params = jax.device_put(self._load(), replicated(self._mesh))
        if self._timed:
            self._batch(params, 0)
        self._seconds = 0.0
        for begin in range(0, self._num, self._batch_size):
            start = time.perf_counter()
            images, labels = self._batch(params, begin)
            self._seconds += time.perf_counter() - start
            count = min(self._batch_size, self._num - begin)
            yield {"image": images[:count], "label": labels[:count]}

    def describe(self, index: int) -> str:
        """Return the network and the image's number."""
        return f"image {self._first + index} of {self.name}"

    def figures(self) -> dict[str, Any]:
        """Return number, network calls an image, and seconds an image where they are wanted."""
        found = {"num_samples": self._num, "nfe": self._sampler.nfe}
        return found | ({"seconds_per_image": self._seconds / self._num} if self._timed else {})

    def _batch(self, params: Params, begin: int) -> tuple[np.ndarray, np.ndarray]:
        # The last batch is whole as the others are, so that one program serves all.
        begin += self._first
        indices = np.arange(begin, begin + self._batch_size)
        labels = uniform_labels(begin + self._batch_size, self._family.num_classes)[begin:]
        split = functools.partial(batch_sharding, self._mesh)
        noise = sample_noise(
            self._seed,
            jax.device_put(indices, split()),
            self._sampler.num_noises,
            self._family.image_shape,
        )
        noise = jax.device_put(noise, split(1))
        cond = jax.device_put(self._family.cond(labels), split())
        return np.asarray(self._sampler.run(params, noise, cond)), labels


def training_score(
    recipe: Recipe,
    workdir: str | Path,
    sampler: Sampler,
    choose: Callable[[PyTree], Params],
) -> Callable[[PyTree], dict[str, float]] | None:
    """Return what measures a run as it trains: state -> fid, class_accuracy.

    The images go by in batches on the devices of the run, each process's a share of them, and are
    forgotten, as those of `dmd2 evaluate`. The same noise every time, and no clock in the figures:
    a resumed run reports the same.

    Args:
      recipe: of its config, `log.evaluate_every`, `evaluate`, `seed` and `data` count.
      workdir: the run folder; the classifier of the real images is kept there, as by
        `dmd2 evaluate`.
      sampler: of the network that trains.
      choose: state -> the weights to measure.

    Returns:
      The function, which every process of the run must call; None if `log.evaluate_every` is 0.

    Raises:
      ValueError: if the data are refused, or the processes do not have one classifier.
    """
    config, family = recipe.config, recipe.family
    if not config.log.evaluate_every:
        return None
    cache = Path(workdir) / "classifier"
    reference = on_first(lambda: open_reference(config, cache))
    if reference is None:  # the first has put the classifier there by now
        reference = open_reference(config, cache)
    place, number = _place(), config.evaluate.training_samples
    mesh = _own_mesh(recipe.mesh)
    share = range(*(number * (place[0] + i) // place[1] for i in range(2)))
    batch_size = min(config.evaluate.batch_size, max(len(share), 1))
    extractor = classifier_extractor(
        reference.classifier, batch_size=_whole(batch_size, mesh), mesh=mesh
    )
    _check_one_classifier(extractor)

    def score(state: PyTree) -> dict[str, float]:
        weights = to_host(choose(state))
        images = SampledImages(
            "training",
            "the network that trains",
            family,
            sampler,
            lambda: weights,
            num=len(share),
            batch_size=batch_size,
            seed=config.seed,
            mesh=mesh,
            first=share.start,
            timed=False,
        )
        statistics, correct = _together(*_judge(extractor, images))
        found = {"fid": fid(reference.statistics, statistics)}
        return found | ({"class_accuracy": correct / number} if images.conditional else {})

    return score


def _place() -> tuple[int, int]:
    """Return (the number of this process, how many there are)."""
    return jax.process_index(), jax.process_count()


def _own_mesh(mesh: Mesh) -> Mesh:
    """Return the devices of a run's mesh that are this process's, for images alone."""
    own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return make_mesh({"data": -1}, own)


def _whole(batch_size: int, mesh: Mesh) -> int:
    """Return the next number of images that splits evenly over the devices."""
    return math.ceil(batch_size / mesh.size) * mesh.size


def _check_one_classifier(extractor: Extractor) -> None:
    """Refuse processes that would measure in feature spaces of their own."""
    names = sorted(set(from_all(extractor.name)))
    if len(names) > 1:
        raise Refused(
            f"the processes of this run trained different classifiers, {', '.join(names)}, "
            "expected one; put --workdir where all of them read it, or set "
            "--config.log.evaluate_every=0."
        )


def _judge(extractor: Extractor, images: SampledImages) -> tuple[FeatureStatistics, int]:
    """Let images go by once; return their statistics, and how many are of the class asked for."""
    if not len(images):  # there are more processes than images
        return FeatureStatistics.empty(extractor.dimension), 0
    collector = Collector(
        extractor, {"logits", "labels"} if images.conditional else (), images.describe
    )
    for batch in images.batches():
        collector.add(batch["image"], batch["label"])
    found = collector.result()
    assert isinstance(found.statistics, FeatureStatistics)  # a Collector makes no others
    correct = 0
    if found.logits is not None and found.labels is not None:
        correct = int((found.logits.argmax(axis=-1) == found.labels).sum())
    return found.statistics, correct


def _together(statistics: FeatureStatistics, correct: int) -> tuple[FeatureStatistics, int]:
    """Return the sums over all processes, to each of them the same."""
    own: dict[str, Any] = {"count": statistics.count, "correct": correct}
    own |= {"mean": statistics.mean.tolist(), "scatter": statistics.scatter.tolist()}
    total, correct = FeatureStatistics.empty(statistics.dimension), 0
    for part in from_all(own):
        arrays = (np.asarray(part[name], np.float64) for name in ("mean", "scatter"))
        total = total.merge(FeatureStatistics(part["count"], *arrays))
        correct += part["correct"]
    return total, correct
