"""Ways from noise to images: a teacher's many steps and a student's few."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt32
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.guidance import Guided, guided_x0
from dmd2_jax.diffusion.samplers import ddim, heun, sampling_times
from dmd2_jax.diffusion.schedules import is_rectified_flow, karras_sigmas
from dmd2_jax.distill import generate
from dmd2_jax.families.published.flow_scheduler import flow_times, is_flow
from dmd2_jax.families.published.scheduler import ddim_times
from dmd2_jax.recipe.guidance import (
    check_guided_once,
    check_teacher_scale,
    chosen_scale,
    has_scale_input,
    told_network,
)
from dmd2_jax.recipe.open import Family, Recipe, sample_labels, student_times
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.typing import Array, Float, Int, Params, PyTree

__all__ = [
    "LARGE_LATENT",
    "Sampler",
    "ddim_sampler",
    "few_step_sampler",
    "grid_labels",
    "sample_images",
    "sample_noise",
    "student_sampler",
    "teacher_sampler",
    "with_scale",
]


_MOST_CLASSES = 10  # in a grid

LARGE_LATENT = 32
"""Side from which latents cost so much that few of them are drawn."""


class Sampler(NamedTuple):
    """A compiled way from noise to images.

    Attributes:
      run: (params, noise [s, b, h, w, c] standard normal, cond) -> x_0 [b, h, w, c].
      num_noises: s, how many noises an image takes.
      nfe: network evaluations an image.
      guidance: w of a guided teacher; None: none is added.
    """

    run: Callable[[Params, Array, PyTree], Array]
    num_noises: int
    nfe: int
    guidance: float | None = None


def teacher_sampler(family: Family, config: ConfigDict, guidance: float | None = None) -> Sampler:
    """Make the teacher's sampler, with the config's guidance: DDIM for steps, else Heun.

    Heun's times are rho-spaced for sigmas; for a flow, whose equation has the same form, equal
    parts of its levels, shifted as these are.

    Args:
      family: the networks.
      config: the whole config.
      guidance: w in place of the config's; with a range of scales that is its middle.

    Raises:
      Refused: if it is no scale.
    """
    model, steps = config.model, config.teacher.sampler_steps
    check_teacher_scale(guidance)
    if guidance is None:
        guidance = config.distill.guidance
    if guidance is None and not has_scale_input(family):
        guidance = chosen_scale(config.distill)
    check_guided_once(family, guidance, "guidance")
    levels = family.denoiser.schedule
    x0_fn = guided_x0(family.denoiser, guidance)
    guidance = None if guidance == 1 else guidance
    passes = 1 if guidance is None else 2
    if np.issubdtype(levels.levels.dtype, np.integer):
        steps_down = sampling_times(levels, steps)

        @jax.jit
        def run_ddim(params: Params, noise: Array, cond: PyTree) -> Array:
            return ddim(x0_fn, params, noise[0], cond, schedule=levels, times=steps_down)

        return Sampler(run_ddim, 1, passes * steps, guidance)
    if is_rectified_flow(levels):
        times = sampling_times(levels, steps)
    else:  # a family of the user's own may say nothing of sigmas: from end to end of its levels
        low, high = float(levels.levels[0]), float(levels.levels[-1])
        ends = {"sigma_min": low, "sigma_max": high, "rho": 7.0}
        times = karras_sigmas(steps, **{name: model.get(name, end) for name, end in ends.items()})

    @jax.jit
    def run(params: Params, noise: Array, cond: PyTree) -> Array:
        return heun(x0_fn, params, noise[0], cond, times=times)

    return Sampler(run, 1, passes * (2 * steps - 1), guidance)


def student_sampler(family: Family, config: ConfigDict) -> Sampler:
    """Make the student's sampler: its few steps. With a range of scales conditions are `Guided`."""
    times = student_times(config, family.denoiser.schedule)
    return few_step_sampler(told_network(config, family), times)


def few_step_sampler(denoiser: Denoiser, times: Sequence[float]) -> Sampler:
    """Make the sampler of a student with these decreasing times."""
    steps = tuple(float(t) for t in times)

    @jax.jit
    def run(params: Params, noise: Array, cond: PyTree) -> Array:
        return generate(denoiser, params, noise, cond, times=steps)

    return Sampler(run, len(steps), len(steps))


def ddim_sampler(
    denoiser: Denoiser,
    scheduler: Mapping[str, Any],
    *,
    steps: int,
    guidance: float | None,
    tokens: int = 0,
) -> Sampler:
    """Make a teacher's sampler: diffusers' DDIMScheduler without noise, with guidance.

    On a flow's schedule that is Euler's method.

    Args:
      denoiser: the network.
      scheduler: what scheduler_config.json holds.
      steps: their number.
      guidance: w of u + w (c - u); None or 1: no guidance.
      tokens: of an image, which the shift of a flow may follow.

    Raises:
      ValueError: if steps are more than the diffusion has, the scheduler is of another kind, or
        the guidance is no scale.
    """
    check_teacher_scale(guidance)
    x0_fn, schedule = guided_x0(denoiser, guidance), denoiser.schedule
    flow = is_flow(scheduler)
    if flow != is_rectified_flow(schedule):
        kind = "a flow" if is_rectified_flow(schedule) else "no flow"
        raise Refused(
            f"scheduler of class {scheduler.get('_class_name')!r}, expected one of the network's, "
            f"which predicts {kind}; correct scheduler in model_index.json, or take the release's."
        )
    times = flow_times(scheduler, steps, tokens) if flow else ddim_times(scheduler, steps)

    @jax.jit
    def run(params: Params, noise: Array, cond: PyTree) -> Array:
        return ddim(x0_fn, params, noise[0], cond, schedule=schedule, times=times)

    guidance = None if guidance == 1 else guidance
    passes = 1 if guidance is None else 2
    return Sampler(run, 1, passes * (len(times) - 1), guidance)


def sample_images(
    sampler: Sampler,
    family: Family,
    params: Params,
    labels: PyTree,
    *,
    seed: int,
    batch_size: int,
    first: int = 0,
    guidance: float | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """Sample one image for each label.

    Image i depends on (seed, i, its label) alone, whatever the batch size; the teacher and the
    student start image i from the same noise.

    Args:
      sampler: from `teacher_sampler` or `student_sampler`.
      family: the networks.
      params: the weights.
      labels: [n] class numbers, ignored by an unconditional model, or what else `Family.cond`
        takes, of leading axis n.
      seed: of the noise.
      batch_size: images at a time.
      first: number of the first image.
      guidance: the scale that a student takes as an input; None: it takes none.

    Returns:
      [n, h, w, c] float32, nominally in [-1, 1]; of a latent model latents.
    """
    images, count = [], len(jax.tree.leaves(labels)[0])
    for begin in range(0, count, batch_size):
        # The last batch is filled up, so that one program serves all.
        rows = np.arange(begin, begin + batch_size)
        filled = _rows(labels, begin + np.arange(batch_size) % min(batch_size, count - begin))
        noise = sample_noise(seed, first + rows, sampler.num_noises, family.image_shape)
        cond = with_scale(family.cond(filled), guidance, batch_size)
        images.append(sampler.run(params, noise, cond))
    return np.concatenate([np.asarray(x) for x in images])[:count]


def with_scale(cond: PyTree, guidance: float | None, batch_size: int) -> PyTree:
    """Return the conditions of a batch with the scale that a student takes; None: it takes none."""
    return cond if guidance is None else Guided(cond, jnp.full((batch_size,), guidance))


def _rows(labels: PyTree, rows: Int[np.ndarray, " n"]) -> PyTree:
    return jax.tree.map(lambda array: array[rows], labels)


def sample_noise(
    seed: int, indices: Int[Array | np.ndarray, " b"], num_noises: int, shape: tuple[int, ...]
) -> Float[Array, "s b ..."]:
    """Draw the standard normal noise of the images with these indices.

    Args:
      seed: 0 .. 2**32 - 1.
      indices: [b], of the images.
      num_noises: s, how many noises an image takes.
      shape: of a noise.
    """
    return _noise(np.uint32(seed), indices, num_noises, shape)  # an int is an int32 to a program


@functools.partial(jax.jit, static_argnums=(2, 3))
def _noise(
    seed: UInt32[Array, ""], indices: Int[Array, " b"], num_noises: int, shape: tuple[int, ...]
) -> Float[Array, "s b ..."]:
    root = jax.random.key(seed)

    def one(step: int, index: Array) -> Array:
        return jax.random.normal(stream_key(root, f"sample/{step}", index), shape)

    draws = [jax.vmap(functools.partial(one, step))(indices) for step in range(num_noises)]
    return jnp.stack(draws)


def grid_labels(recipe: Recipe, rows: int = 8) -> tuple[PyTree, int, int]:
    """Return (labels, rows, columns) of a training run's sample grid, `rows` at the most.

    Image i is in column i mod columns. Of classes a column shows one: each, or ten of many.
    """
    classes = recipe.family.num_classes
    columns = classes if 1 < classes <= _MOST_CLASSES else _MOST_CLASSES
    if recipe.prompts is not None and max(recipe.family.image_shape[:2]) > LARGE_LATENT:
        rows, columns = min(rows, 2), 4
    if recipe.prompts is None and classes > _MOST_CLASSES:
        chosen = np.linspace(0, classes - 1, columns).astype(np.int32)
        return np.tile(chosen, rows), rows, columns
    return sample_labels(recipe, np.arange(rows * columns)), rows, columns
