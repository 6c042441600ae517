"""Figures of one network against the real data: what `dmd2 evaluate` and training runs report.

The distances are in the feature space of a small classifier that is trained on the real images
(see `evaluation.features`), so they compare models of one data set and nothing else.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.evaluation.features import (
    Classifier,
    distribution_report,
    real_fid_floor,
    real_statistics,
    train_classifier,
)
from dmd2_jax.evaluation.fid import FeatureStatistics
from dmd2_jax.recipe import Family, Recipe, uniform_labels
from dmd2_jax.runtime.distributed import from_first, on_first, to_host
from dmd2_jax.sample import Sampler, sample_images
from dmd2_jax.typing import Params, PyTree

__all__ = ["Reference", "measure", "open_reference", "training_score"]


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
    train, test = (data.to_memory(data.load(config.data, split)) for split in ("train", "test"))
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
    """Sample, time and judge one network.

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
    report = _judged(reference, family, images, labels)
    return report | {"nfe": sampler.nfe, "seconds_per_image": seconds / num_samples}


def training_score(
    recipe: Recipe,
    workdir: str | Path,
    sampler: Sampler,
    choose: Callable[[PyTree], Params],
) -> Callable[[PyTree], dict[str, float]] | None:
    """Return what measures a run as it trains: state -> fid, class_accuracy.

    The same noise every time, and no clock in the figures: a resumed run reports the same.

    Args:
      recipe: of its config, `log.evaluate_every`, `evaluate` and `data` count.
      workdir: the run folder; the classifier of the real images is kept there, as by
        `dmd2 evaluate`.
      sampler: of the network that trains.
      choose: state -> the weights to measure.

    Returns:
      The function; None if `log.evaluate_every` is 0.
    """
    config, family = recipe.config, recipe.family
    if not config.log.evaluate_every:
        return None
    reference = on_first(lambda: open_reference(config, Path(workdir) / "classifier"))
    number = config.evaluate.training_samples
    labels = uniform_labels(number, family.num_classes)

    def measured(weights: Params) -> dict[str, float]:
        assert reference is not None  # nobody else calls this
        params = jax.device_put(weights, jax.local_devices()[0])
        batch_size = min(number, config.evaluate.batch_size)
        images = sample_images(
            sampler, family, params, labels, seed=config.seed, batch_size=batch_size
        )
        report = _judged(reference, family, images, labels)
        return {name: report[name] for name in ("fid", "class_accuracy") if name in report}

    def score(state: PyTree) -> dict[str, float]:
        weights = to_host(choose(state))
        return from_first(lambda: measured(weights))

    return score


def _judged(
    reference: Reference, family: Family, images: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    report = dict(distribution_report(reference.statistics, images, labels, reference.classifier))
    if not family.num_classes:
        del report["class_accuracy"]
    return report
