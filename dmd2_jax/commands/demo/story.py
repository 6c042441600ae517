"""A teacher of digits, its student of one step, and what both are worth."""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.evaluate.evaluate import judge
from dmd2_jax.evaluate.spaces import classifier_space, reference_side
from dmd2_jax.evaluate.table import metrics_table
from dmd2_jax.metrics.features.real import Reference, open_reference
from dmd2_jax.pictures.grids import class_rows, first_of_each_class
from dmd2_jax.recipe.open import Family, build_family, check, uniform_labels
from dmd2_jax.run.folder import write_json
from dmd2_jax.runtime.devices import say_devices
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.sharding import make_mesh
from dmd2_jax.sampling.conditions import Classes
from dmd2_jax.sampling.images import Model, SampledImages
from dmd2_jax.sampling.samplers import Sampler, sample_images, student_sampler, teacher_sampler
from dmd2_jax.training import student as train_student
from dmd2_jax.training import teacher as train_teacher
from dmd2_jax.typing import Params

__all__ = ["demonstrate"]

ROWS = 4
"""Images of each class in every section of summary.png."""

_FIGURES = ("fid", "class_accuracy", "num_samples", "nfe", "seconds_per_image")


def demonstrate(
    workdir: str | Path, recipe_file: str, overrides: Mapping[str, str]
) -> dict[str, Any]:
    """Train, distil, sample and measure; print one table, and resume what was interrupted.

    Args:
      workdir: folder for summary.png, metrics.json and the run folders teacher/ and student/.
      recipe_file: as of `load_config`; the demo is made for `digits`.
      overrides: changes to it, {"teacher.steps": "100"}.

    Returns:
      What metrics.json holds: teacher_*, student_* (the generator's moving average, which is what
      one would ship) with fid, nfe, class_accuracy and seconds_per_image; real_fid_floor;
      classifier_test_accuracy; speedup; seconds_teacher, seconds_distill, seconds_total.

    Raises:
      Refused: if the config or the folder is refused.
      Interrupted: if asked to stop; the run is then saved.
    """
    start = time.perf_counter()
    workdir = path_of(workdir)
    recipe = load_config(recipe_file)
    apply_overrides(recipe, {"teacher.weights": str(workdir / "teacher"), **overrides})
    check(recipe)

    say_devices(make_mesh(recipe.mesh))
    _say("1/4  a classifier of real digits, whose features judge the samples")
    reference = open_reference(recipe, workdir / "classifier")
    print(f"     test accuracy {reference.classifier.test_accuracy:.2%}", flush=True)

    _say(f"2/4  the teacher: {recipe.teacher.steps} steps of denoising score matching")
    teacher_start = time.perf_counter()
    teacher_file = train_teacher.train(recipe, workdir / "teacher")
    assert teacher_file is not None  # as of a dry run
    seconds_teacher = time.perf_counter() - teacher_start

    _say(
        f"3/4  the student: {recipe.distill.cycles} cycles of DMD2, each 1 generator turn and "
        f"{recipe.distill.critic_turns} critic turns"
    )
    distill_start = time.perf_counter()
    train_student.train(recipe, workdir / "student")
    seconds_distill = time.perf_counter() - distill_start

    _say(f"4/4  {recipe.evaluate.num_samples} samples of each, measured")
    family = build_family(recipe)
    student_file = workdir / "student" / train_student.student_files(recipe)[-1]
    networks = {
        "teacher": (teacher_sampler(family, recipe), family.load(teacher_file)),
        "student": (student_sampler(family, recipe), family.load(student_file)),
    }
    metrics = _measured(recipe, family, networks, reference)
    metrics |= {
        "real_fid_floor": reference.fid_floor,
        "classifier_test_accuracy": reference.classifier.test_accuracy,
        "speedup": metrics["teacher_seconds_per_image"] / metrics["student_seconds_per_image"],
        "seconds_teacher": seconds_teacher,
        "seconds_distill": seconds_distill,
        "device": str(jax.devices()[0].device_kind),
        "seconds_total": time.perf_counter() - start,
    }
    _summary(recipe, family, networks, metrics, workdir / "summary.png")
    metrics["seconds_total"] = time.perf_counter() - start
    write_json(workdir / "metrics.json", metrics)
    print(f"\n{metrics_table(metrics)}\n", flush=True)
    print(
        f"The student needs {metrics['student_nfe']} network call an image, the teacher "
        f"{metrics['teacher_nfe']}: {metrics['speedup']:.0f} times less time.\n"
        f"Done in {metrics['seconds_total'] / 60:.1f} minutes. Look at {workdir / 'summary.png'}; "
        f"all figures are in {workdir / 'metrics.json'}.",
        flush=True,
    )
    return metrics


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def _measured(
    recipe: ConfigDict,
    family: Family,
    networks: Mapping[str, tuple[Sampler, Params]],
    reference: Reference,
) -> dict[str, Any]:
    """Measure as `dmd2 evaluate` does, on one device."""
    mesh, num = make_mesh({}, jax.devices()[:1]), recipe.evaluate.num_samples
    batch_size = min(recipe.evaluate.batch_size, num)
    space = classifier_space(reference, ("fid",), mesh, batch_size)
    real = reference_side(reference, space, "digits")
    figures: dict[str, Any] = {}
    for name, (sampler, params) in networks.items():
        images = SampledImages(
            name,
            name,
            Model(family, sampler, functools.partial(lambda weights: weights, params)),
            Classes(family.num_classes),
            num=num,
            batch_size=batch_size,
            seed=recipe.seed,
            mesh=mesh,
        )
        found = judge(images, [space], real)
        figures |= {f"{name}_{key}": found[key] for key in _FIGURES if key in found}
    return figures


def _summary(
    recipe: ConfigDict,
    family: Family,
    networks: Mapping[str, tuple[Sampler, Params]],
    metrics: Mapping[str, Any],
    path: Path,
) -> None:
    """Write real, teacher and student images by class; teacher and student from the same noise."""
    real = data.to_memory(data.load(recipe.data, "test", recipe.model.resolution))
    classes = real.num_classes
    labels = uniform_labels(ROWS * classes, classes)
    sections: dict[str, np.ndarray] = {
        "real": first_of_each_class(real.images, real.labels, classes, ROWS)
    }
    for name, (sampler, params) in networks.items():
        calls = metrics[f"{name}_nfe"]
        heading = (
            f"{name}: {calls} network call{'s' if calls > 1 else ''} an image, "
            f"FID {metrics[f'{name}_fid']:.2f}"
        )
        sections[heading] = sample_images(
            sampler, family, params, labels, seed=recipe.seed, batch_size=len(labels)
        )
    class_rows(
        sections, path, class_names=range(classes), title="DMD2 on digits: teacher to one step"
    )
