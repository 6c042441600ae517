"""The images that `dmd2 evaluate` measures: sampled as they are needed, or read from files."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax.config.flags import given
from dmd2_jax.config.refused import Refused
from dmd2_jax.data import Batch
from dmd2_jax.data.reading.dataset import Subset
from dmd2_jax.data.reading.prompts import Prompts as PromptFile
from dmd2_jax.data.reading.prompts import read_prompts
from dmd2_jax.evaluate.options import EvaluateOptions
from dmd2_jax.evaluate.targets import run_targets
from dmd2_jax.metrics.features.images import image_batches, open_images
from dmd2_jax.recipe.guidance import chosen_scale, load_student
from dmd2_jax.recipe.open import Family, build_family
from dmd2_jax.recipe.text_family import text_family
from dmd2_jax.recipe.weights_file import weights_file
from dmd2_jax.sampling.conditions import Classes, Prompts
from dmd2_jax.sampling.images import Images, Model, SampledImages, class_model
from dmd2_jax.sampling.prompts import PromptSettings, pipeline_model, run_models
from dmd2_jax.sampling.runs import Run
from dmd2_jax.sampling.samplers import Sampler, student_sampler, teacher_sampler

__all__ = ["FILES_BATCH", "FileImages", "open_measured", "refuse_cut_prompts"]

FILES_BATCH = 256
"""Images of a folder at a time."""

_PROMPTS_BATCH = 4
_OF_PROMPTS = ("prompts", "cut_prompts", "shape", "steps", "dtype")


class FileImages:
    """A folder, zip or .npz of images; see `sampling.images.Images`."""

    def __init__(self, path: str, num: int, seed: int) -> None:
        """Open it.

        Args:
          path: the folder, zip or .npz.
          num: how many of its images, drawn at random; 0: all.
          seed: of which.

        Raises:
          FileNotFoundError: if there is nothing at `path`.
          ValueError: if it has fewer images, or they are refused.
        """
        source = open_images(path)
        if num > len(source):
            raise Refused(
                f"`num={num}`, expected at most the {len(source)} images of {path}; leave it away."
            )
        indices = np.arange(len(source))
        if num:
            indices = np.sort(np.random.RandomState(seed).choice(indices, num, replace=False))
        self._source, self._indices = source, indices
        self._images = Subset(source, indices)
        self.key, self.name, self.conditional = "images", str(path), False
        self.step: int | None = None
        self.resolution, self.channels = source.resolution, source.channels

    def __len__(self) -> int:
        return len(self._indices)

    def batches(self) -> Iterator[Batch]:
        """Yield them in the order of their names."""
        return image_batches(self._images, FILES_BATCH)

    def describe(self, index: int) -> str:
        """Return an image's file."""
        return self._source.describe(int(self._indices[index]))

    def figures(self) -> dict[str, Any]:
        """Return their number."""
        return {"num_samples": len(self)}


def open_measured(
    options: EvaluateOptions, config: ConfigDict | None, run: Run | None, mesh: Mesh
) -> list[Images]:
    """Open what the flags name, loading no weights yet.

    Args:
      options: checked flags.
      config: the recipe; needed unless a folder is measured.
      run: the run, where `options.workdir` names one.
      mesh: the devices.

    Returns:
      A folder's images, a pipeline, a file of weights, or the networks of a run; empty if there is
      nothing to measure.

    Raises:
      ValueError: if there are no such weights or images.
    """
    if options.images:
        return [FileImages(options.images, options.num, options.seed)]
    if options.pipeline:
        return [_of_pipeline(options, mesh)]
    if config is None or not (options.weights or run):
        return []
    family = build_family(config) if run is None else run.family
    if text_family(family) is not None:
        return _of_text_run(options, run, mesh)
    if names := given(options, _OF_PROMPTS):
        raise Refused(
            f"`{names[0]}=` with {options.workdir or options.config}, which is of classes, "
            "expected a text-to-image model; leave it away."
        )
    if run is None:
        return [_of_weights(options, config, family, mesh)]
    return _of_run(options, run, mesh)


def _of_run(options: EvaluateOptions, run: Run, mesh: Mesh) -> list[Images]:
    """Return what the flags name of a run of classes."""
    samplers: dict[str, Sampler] = {}  # one each: they are compiled once
    found: list[Images] = []
    for key, chosen in run_targets(options, run):
        if chosen.which not in samplers:
            samplers[chosen.which] = _sampler(options, chosen.which, run.family, run.config)
        model = class_model(
            run.family,
            run.config,
            samplers[chosen.which],
            chosen.load,
            guidance=chosen.scale(options.guidance),
        )
        found.append(_of_classes(options, run.config, key, chosen.name, model, mesh, chosen.step))
    return found


def _of_weights(
    options: EvaluateOptions, config: ConfigDict, family: Family, mesh: Mesh
) -> SampledImages:
    """Return what a file of weights makes, of a recipe without a run."""
    which = options.which or "student"
    file = weights_file(options.weights, f"{which}.safetensors")
    scale = chosen_scale(config.distill, options.guidance) if which == "student" else None
    load = family.load if scale is None else functools.partial(load_student, family)
    sampler = _sampler(options, which, family, config)
    model = class_model(family, config, sampler, lambda: load(file), guidance=scale)
    return _of_classes(options, config, which, str(file), model, mesh)


def _sampler(options: EvaluateOptions, which: str, family: Family, config: ConfigDict) -> Sampler:
    if which == "teacher":
        return teacher_sampler(family, config, options.guidance)
    return student_sampler(family, config)


def _of_classes(
    options: EvaluateOptions,
    config: ConfigDict,
    key: str,
    name: str,
    model: Model,
    mesh: Mesh,
    step: int | None = None,
) -> SampledImages:
    return SampledImages(
        key,
        name,
        model,
        Classes(model.family.num_classes),
        num=options.num or config.evaluate.num_samples,
        batch_size=options.batch_size or config.evaluate.batch_size,
        seed=options.seed,
        mesh=mesh,
        step=step,
    )


def _of_pipeline(options: EvaluateOptions, mesh: Mesh) -> SampledImages:
    """Return what a pipeline makes of prompts."""
    file = read_prompts(options.prompts)
    model = pipeline_model(options.pipeline, _settings(options, options.which))
    return _of_prompts(options, "pipeline", options.pipeline, model, file, mesh)


def _of_text_run(options: EvaluateOptions, run: Run | None, mesh: Mesh) -> list[Images]:
    """Return what the flags name of a run of prompts, each with the run's pipeline."""
    if run is None or not options.prompts:
        raise Refused(
            f"{options.workdir or options.config} is of a text-to-image model, expected `workdir=` "
            "and `prompts=FILE` of what to draw (.txt, .jsonl or .parquet); add them, or give "
            "`pipeline=` of what `dmd2 export` wrote."
        )
    file = read_prompts(options.prompts)
    model = run_models(run, _settings(options, None))
    return [
        _of_prompts(options, key, chosen.name, model(chosen), file, mesh, chosen.step)
        for key, chosen in run_targets(options, run)
    ]


def _settings(options: EvaluateOptions, which: str | None) -> PromptSettings:
    return PromptSettings(
        which=which,
        shape=options.shape or 0,
        steps=options.steps,
        guidance=options.guidance,
        dtype=options.dtype or "",
        variant=options.variant,
    )


def refuse_cut_prompts(options: EvaluateOptions, measured: Sequence[Images]) -> None:
    """Refuse prompts that no text encoder reads whole; reads the text encoders.

    Args:
      options: the flags.
      measured: from `open_measured`, of one pipeline if of prompts.

    Raises:
      Refused: naming their lines.
    """
    conditions = [one.conditions for one in measured if isinstance(one, SampledImages)]
    if not options.cut_prompts and conditions and isinstance(conditions[0], Prompts):
        conditions[0].refuse_cut(read_prompts(options.prompts).describe)


def _of_prompts(
    options: EvaluateOptions,
    key: str,
    name: str,
    model: Model,
    file: PromptFile,
    mesh: Mesh,
    step: int | None = None,
) -> SampledImages:
    assert model.pipeline is not None  # which a model of prompts has
    return SampledImages(
        key,
        name,
        model,
        Prompts(model.pipeline, file.texts),
        num=options.num or len(file.texts),
        batch_size=options.batch_size or _PROMPTS_BATCH,
        seed=options.seed,
        mesh=mesh,
        step=step,
    )
