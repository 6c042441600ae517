"""The images that `dmd2 evaluate` measures: sampled as they are needed, or read from files."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.data import Batch
from dmd2_jax.data.reading.dataset import Subset
from dmd2_jax.evaluate.options import EvaluateOptions
from dmd2_jax.evaluate.prompts import pipeline_images, text_run_images
from dmd2_jax.evaluate.targets import run_targets
from dmd2_jax.metrics.features.images import image_batches, open_images
from dmd2_jax.recipe.open import Family, build_family, weights_file
from dmd2_jax.sampling.measure import SampledImages
from dmd2_jax.sampling.samplers import (
    Sampler,
    checkpoint_params,
    load_run,
    run_recipe,
    student_sampler,
    teacher_sampler,
)
from dmd2_jax.sampling.text_run import FAMILY
from dmd2_jax.typing import Params

__all__ = ["FILES_BATCH", "FileImages", "Measured", "SampledImages", "open_measured"]

FILES_BATCH = 256
"""Images of a folder at a time."""


class Measured(Protocol):
    """A set of images of one size, which go by in batches.

    Attributes:
      key: in front of its figures.
      name: for messages: the network or the folder.
      resolution: height and width in pixels.
      channels: 1 or 3.
      conditional: whether the labels are classes that were asked for.
      step: of the checkpoint that it is from, if it is from one.
    """

    key: str
    name: str
    resolution: int
    channels: int
    conditional: bool
    step: int | None

    def __len__(self) -> int: ...

    def batches(self) -> Iterator[Batch]:
        """Yield {"image": [b, h, w, c], "label": [b]}, bytes or floats in [-1, 1]."""

    def describe(self, index: int) -> str:
        """Return the name of an image, for messages."""

    def figures(self) -> dict[str, Any]:
        """Return what is known of the making of the images once they have gone by."""


class FileImages:
    """A folder or zip of images; see `Measured`."""

    def __init__(self, path: str, num: int, seed: int) -> None:
        """Open it.

        Args:
          path: the folder or zip.
          num: how many of its images, drawn at random; 0: all.
          seed: of which.

        Raises:
          FileNotFoundError: if there is nothing at `path`.
          ValueError: if it has fewer images, or they are refused.
        """
        source = open_images(path)
        if num > len(source):
            raise Refused(
                f"--num={num}, expected at most the {len(source)} images of {path}; leave it away."
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
    options: EvaluateOptions, config: ConfigDict | None, mesh: Mesh
) -> list[Measured]:
    """Open what the flags name, loading no weights yet.

    Args:
      options: checked flags.
      config: the recipe; needed unless a folder is measured.
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
        return [pipeline_images(options, mesh)]
    if config is None or not (options.weights or options.workdir):
        return []
    if config.model.family == FAMILY:
        return list(text_run_images(options, mesh))
    for name in ("prompts", "steps", "guidance", "dtype"):
        if getattr(options, name) not in (None, ""):
            raise Refused(
                f"--{name} with {options.workdir or options.config}, which is of classes, expected "
                "a text-to-image model; leave it away."
            )
    if options.weights:
        return [_weights(options, config, mesh)]
    return list(_networks(options, config, mesh))


def _networks(options: EvaluateOptions, config: ConfigDict, mesh: Mesh) -> Iterator[SampledImages]:
    """Yield what the flags name of a run of classes."""
    family = build_family(config)
    make = _maker(options, config, family, mesh)
    for key, which, ema, step in run_targets(options):
        if step is not None:
            name = f"checkpoint {step} of {options.workdir}"
            load = functools.partial(_checkpoint, options.workdir, step, ema)
        else:
            file = load_run(options.workdir, which, ema)[-1]
            name, load = str(file), functools.partial(family.load, file)
        yield make(key, name, load, step=step)


def _weights(options: EvaluateOptions, config: ConfigDict, mesh: Mesh) -> SampledImages:
    which = options.which or "student"
    if options.workdir and options.which is None:
        which = run_recipe(options.workdir)[1]
    file = weights_file(options.weights, f"{which}.safetensors")
    family = build_family(config)
    make = _maker(options, config, family, mesh)
    return make(which, str(file), functools.partial(family.load, file))


def _checkpoint(workdir: str, step: int, ema: float | None) -> Params:
    return checkpoint_params(workdir, step, ema=ema)[0]


def _maker(
    options: EvaluateOptions, config: ConfigDict, family: Family, mesh: Mesh
) -> Callable[..., SampledImages]:
    """Return what makes the images of one network, whose name begins with its kind."""
    samplers: dict[str, Sampler] = {}  # one each: they are compiled once

    def make(
        key: str, name: str, load: Callable[[], Params], step: int | None = None
    ) -> SampledImages:
        kind = key.partition("_")[0]
        if kind not in samplers:
            samplers[kind] = {"teacher": teacher_sampler, "student": student_sampler}[kind](
                family, config
            )
        return SampledImages(
            key,
            name,
            family,
            samplers[kind],
            load,
            num=options.num or config.evaluate.num_samples,
            batch_size=options.batch_size or config.evaluate.batch_size,
            seed=options.seed,
            mesh=mesh,
            step=step,
        )

    return make
