"""Measure a run against the real data: `dmd2 evaluate`.

The distances are in the feature space of a small classifier that is trained on the real images
(see `evaluation.features`), so they compare models of one data set and nothing else.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
from dmd2_jax.recipe import Family, aligned, uniform_labels
from dmd2_jax.runtime.run_folder import write_json
from dmd2_jax.sample import Sampler, load_run, sample_images, student_sampler, teacher_sampler
from dmd2_jax.train_student import student_files
from dmd2_jax.typing import Params

__all__ = ["Reference", "evaluate_run", "measure", "metrics_table", "open_reference"]


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
    report = dict(distribution_report(reference.statistics, images, labels, reference.classifier))
    if not family.num_classes:
        del report["class_accuracy"]
    return report | {"nfe": sampler.nfe, "seconds_per_image": seconds / num_samples}


def evaluate_run(
    workdir: str | Path, *, seed: int = 0, cache: str | Path | None = None
) -> dict[str, Any]:
    """Measure what a run trained, and the teacher of a distillation beside it.

    Args:
      workdir: the run folder; metrics.json is written there.
      seed: of the noise.
      cache: see `open_reference`.

    Returns:
      real_fid_floor, classifier_test_accuracy and, for each network, `measure`'s figures with its
      name in front: teacher_fid, student_fid, student_ema_0.999_fid, ...

    Raises:
      ValueError: if there is no finished run in the folder.
    """
    trained, config, family, file = load_run(workdir)
    files = {"teacher": file}
    if trained == "student":
        files["teacher"] = load_run(workdir, "teacher")[-1]
        files |= {
            name.removesuffix(".safetensors"): file.with_name(name)
            for name in student_files(config)
        }
    reference = open_reference(config, cache)
    metrics: dict[str, Any] = {
        "real_fid_floor": reference.fid_floor,
        "classifier_test_accuracy": reference.classifier.test_accuracy,
    }
    samplers = {"teacher": teacher_sampler(family, config)}
    if trained == "student":
        samplers["student"] = student_sampler(family, config)
    for name, weights in files.items():
        figures = measure(
            samplers["teacher" if name == "teacher" else "student"],
            family,
            family.load(weights),
            reference,
            num_samples=config.evaluate.num_samples,
            batch_size=config.evaluate.batch_size,
            seed=seed,
        )
        metrics |= {f"{name}_{key}": value for key, value in figures.items()}
    write_json(Path(workdir) / "metrics.json", metrics)
    return metrics


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Return the figures of `evaluate_run` as a table for the terminal."""
    names = [key.removesuffix("_nfe") for key in metrics if key.endswith("_nfe")]
    columns = {
        "FID": ("fid", "{:.3f}"),
        "class accuracy": ("class_accuracy", "{:.2%}"),
        "calls/image": ("nfe", "{}"),
        "ms/image": ("seconds_per_image", "{:.3f}"),
    }
    rows = [["", *columns]]
    for name in names:
        row = [name]
        for key, form in columns.values():
            value = metrics.get(f"{name}_{key}")
            if key == "seconds_per_image":
                value *= 1e3
            row.append("-" if value is None else form.format(value))
        rows.append(row)
    floor = ["real, half to half", f"{metrics['real_fid_floor']:.3f}"]
    rows.append(floor + ["-"] * (len(columns) - 1))
    return aligned(rows)
