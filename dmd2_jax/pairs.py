"""The teacher's ODE pairs for the regression loss: made once, kept beside the run."""

import logging
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmd2_jax.recipe import Recipe, uniform_labels
from dmd2_jax.runtime.distributed import on_first
from dmd2_jax.runtime.integrity import params_digest
from dmd2_jax.runtime.whole_file import whole_file
from dmd2_jax.sample import sample_images, sample_noise, teacher_sampler
from dmd2_jax.typing import Params

__all__ = ["PairPool", "make_pairs", "pair_shapes"]

_log = logging.getLogger(__name__)


class PairPool(NamedTuple):
    """Teacher ODE pairs on the host: noise [n, h, w, c] -> x_0 [n, h, w, c], labels [n]."""

    noise: np.ndarray
    x_0: np.ndarray
    labels: np.ndarray


def make_pairs(recipe: Recipe, teacher_params: Params, path: Path) -> PairPool:
    """Make the teacher's ODE pairs, or read the ones that were made before.

    Args:
      recipe: the recipe; `distill.regression_pairs` pairs by the teacher's Heun sampler.
      teacher_params: the teacher's weights.
      path: the .npz to keep them in; one that cannot be read, or is another teacher's, is made
        anew, aloud.

    Returns:
      The pairs.
    """
    config, family = recipe.config, recipe.family
    number, shape = config.distill.regression_pairs, tuple(family.image_shape)
    teacher = params_digest(teacher_params)

    def read() -> PairPool:
        with np.load(path, allow_pickle=False) as file:
            pairs = PairPool(file["noise"], file["x_0"], file["labels"])
            made_by = str(file["teacher"])
        if made_by != teacher or not pairs.noise.shape == pairs.x_0.shape == (number, *shape):
            raise ValueError(
                f"noise of shape {pairs.noise.shape} by teacher {made_by}, expected "
                f"{(number, *shape)} by {teacher}"
            )
        return pairs

    def make_file() -> None:
        if path.exists():
            try:
                read()
                return
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                _log.warning(
                    "the teacher pairs in %s are refused (%s); making them again.", path, error
                )
        pairs = _sampled(recipe, teacher_params)
        with whole_file(path) as partial:
            np.savez(partial, **pairs._asdict(), teacher=teacher)

    on_first(make_file)
    return read()


def _sampled(recipe: Recipe, teacher_params: Params) -> PairPool:
    config, family = recipe.config, recipe.family
    number, shape = config.distill.regression_pairs, tuple(family.image_shape)
    labels = uniform_labels(number, family.num_classes)
    _log.warning("making %d teacher pairs for the regression loss.", number)
    seed = config.seed + 1  # the sample grids use config.seed
    batch_size = min(number, config.evaluate.batch_size)
    sampler = teacher_sampler(family, config)
    x_0 = sample_images(sampler, family, teacher_params, labels, seed=seed, batch_size=batch_size)
    noise = np.asarray(sample_noise(seed, np.arange(number), 1, shape)[0])
    return PairPool(noise, x_0, labels)


def pair_shapes(recipe: Recipe) -> PairPool | None:
    """Return pairs of zeros of the right size, for tracing; None without a regression loss."""
    if recipe.config.distill.regression_weight is None:
        return None
    number = recipe.config.distill.regression_pairs
    images = np.zeros((number, *recipe.family.image_shape), np.float32)
    return PairPool(images, images, np.zeros(number, np.int32))
