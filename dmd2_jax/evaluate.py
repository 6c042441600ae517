"""Measure a run against the real data: `dmd2 evaluate`.

The distances are in the feature space of a small classifier that is trained on the real images
(see `evaluation.features`), so they compare models of one data set and nothing else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.measure import measure, open_reference
from dmd2_jax.recipe import aligned
from dmd2_jax.runtime.run_folder import write_json
from dmd2_jax.sample import load_run, student_sampler, teacher_sampler
from dmd2_jax.train_student import student_files

__all__ = ["evaluate_run", "metrics_table"]


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
