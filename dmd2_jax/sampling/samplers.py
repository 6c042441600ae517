"""Sample a trained teacher or student: `dmd2 sample`."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt32
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import check_seed
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.diffusion.samplers import ddim, heun, sampling_times
from dmd2_jax.diffusion.schedules import karras_sigmas
from dmd2_jax.distill import generate
from dmd2_jax.pictures.grids import image_grid
from dmd2_jax.recipe.lora import part_shapes, player_adapters, whole_part
from dmd2_jax.recipe.open import (
    Family,
    Recipe,
    build_family,
    check,
    recorded_config,
    sample_labels,
    teacher_file,
    uniform_labels,
    weights_file,
)
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.run.folder import read_run
from dmd2_jax.run.loop import CHECKPOINTS
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.typing import Array, Float, Int, Params, PyTree

__all__ = [
    "Sampler",
    "checkpoint_params",
    "few_step_sampler",
    "grid_labels",
    "load_run",
    "run_recipe",
    "sample_images",
    "sample_noise",
    "sample_run",
    "student_sampler",
    "teacher_sampler",
]


LARGE_LATENT = 32
"""Side from which latents cost so much that few of them are drawn."""


class Sampler(NamedTuple):
    """A compiled way from noise to images.

    Attributes:
      run: (params, noise [s, b, h, w, c] standard normal, cond) -> x_0 [b, h, w, c].
      num_noises: s, how many noises an image takes.
      nfe: network evaluations an image.
    """

    run: Callable[[Params, Array, PyTree], Array]
    num_noises: int
    nfe: int


def teacher_sampler(family: Family, config: ConfigDict) -> Sampler:
    """Make the teacher's sampler, with the config's guidance: Heun for sigmas, DDIM for steps."""
    model, steps = config.model, config.teacher.sampler_steps
    guidance, levels = config.distill.guidance, family.denoiser.schedule
    x0_fn = guided_x0(family.denoiser, guidance)
    passes = 1 if guidance in (None, 1.0) else 2
    if np.issubdtype(levels.levels.dtype, np.integer):
        steps_down = sampling_times(levels, steps)

        @jax.jit
        def run_ddim(params: Params, noise: Array, cond: PyTree) -> Array:
            return ddim(x0_fn, params, noise[0], cond, schedule=levels, times=steps_down)

        return Sampler(run_ddim, 1, passes * steps)
    # A family of the user's own may say nothing of sigmas: its levels go from end to end then.
    ends = {"sigma_min": float(levels.levels[0]), "sigma_max": float(levels.levels[-1]), "rho": 7.0}
    times = karras_sigmas(steps, **{name: model.get(name, end) for name, end in ends.items()})

    @jax.jit
    def run(params: Params, noise: Array, cond: PyTree) -> Array:
        return heun(x0_fn, params, noise[0], cond, times=times)

    return Sampler(run, 1, passes * (2 * steps - 1))


def student_sampler(family: Family, config: ConfigDict) -> Sampler:
    """Make the student's sampler: its few steps."""
    return few_step_sampler(family.denoiser, config.distill.student_times)


def few_step_sampler(denoiser: Denoiser, times: Sequence[float]) -> Sampler:
    """Make the sampler of a student with these decreasing times."""
    steps = tuple(float(t) for t in times)

    @jax.jit
    def run(params: Params, noise: Array, cond: PyTree) -> Array:
        return generate(denoiser, params, noise, cond, times=steps)

    return Sampler(run, len(steps), len(steps))


def sample_images(
    sampler: Sampler,
    family: Family,
    params: Params,
    labels: PyTree,
    *,
    seed: int,
    batch_size: int,
    first: int = 0,
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

    Returns:
      [n, h, w, c] float32, nominally in [-1, 1]; of a latent model latents.
    """
    images, count = [], len(jax.tree.leaves(labels)[0])
    for begin in range(0, count, batch_size):
        # The last batch is filled up, so that one program serves all.
        rows = np.arange(begin, begin + batch_size)
        filled = _rows(labels, begin + np.arange(batch_size) % min(batch_size, count - begin))
        noise = sample_noise(seed, first + rows, sampler.num_noises, family.image_shape)
        images.append(sampler.run(params, noise, family.cond(filled)))
    return np.concatenate([np.asarray(x) for x in images])[:count]


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
    """Return (labels, rows, columns) of a training run's sample grid, `rows` at the most."""
    classes = recipe.family.num_classes
    columns = classes if 1 < classes <= 10 else 10
    if recipe.prompts is not None and recipe.family.image_shape[0] > LARGE_LATENT:
        rows, columns = min(rows, 2), 4
    return sample_labels(recipe, np.arange(rows * columns)), rows, columns


def load_run(
    workdir: str | Path, which: str | None = None, ema: float | None = None, weights: str = ""
) -> tuple[str, ConfigDict, Family, Path]:
    """Open a run folder for sampling.

    Args:
      workdir: what train-teacher or distill wrote.
      which: "teacher" or "student"; None is the one that the run trains.
      ema: the decay of the student's average to use; None is the student itself.
      weights: a file of weights (docs/weights.md) to use instead of the run's.

    Returns:
      (which, config, family, file of weights).

    Raises:
      ValueError: if there is no run, or it has no such weights.
    """
    trained, which, config = run_recipe(workdir, which, ema)
    if weights:
        file = weights_file(weights, f"{which}.safetensors")
    elif which == trained:
        name = which if ema is None else f"{which}_ema_{ema:g}"
        file = weights_file(str(workdir), f"{name}.safetensors")
    else:
        file = teacher_file(config)
    return which, config, build_family(config), file


def checkpoint_params(
    workdir: str | Path, step: int | None = None, *, part: str = "", ema: float | None = None
) -> tuple[Params, int]:
    """Read the weights alone from a checkpoint of a run; nothing of the optimiser is built.

    Low-rank adapters are merged with the weights of their run's teacher.

    Args:
      workdir: what train-teacher or distill wrote.
      step: which checkpoint; None is the newest good one.
      part: which branch of the state, such as "critic.params"; by default what the run exports:
        "generator.params" of a student, "ema" of a teacher.
      ema: the decay of the student's average to read instead.

    Returns:
      (weights, step).

    Raises:
      ValueError: if there is no run, or it has no such part.
      CheckpointError: if there is no such checkpoint, or it is damaged.
    """
    trained, _, config = run_recipe(workdir, None, ema)
    if ema is not None:
        part = f"ema.{tuple(config.optim.ema_decays).index(ema)}"
    elif not part:
        part = "ema" if trained == "teacher" else "generator.params"
    family, adapter = build_family(config), None
    if trained == "student":
        adapter = player_adapters(config, family)[part.startswith("critic")]
    with Checkpoints(Path(workdir) / CHECKPOINTS, read_only=True) as checkpoints:
        params, extra, found = checkpoints.restore_part(part, part_shapes(adapter, family), step)
    if adapter is not None:
        params = whole_part(params, config, family, extra.get("teacher"))
    return params, found


def run_recipe(
    workdir: str | Path, which: str | None = None, ema: float | None = None
) -> tuple[str, str, ConfigDict]:
    """Return (the network that a run trained, the one to use, the run's config).

    Args:
      workdir: what train-teacher or distill wrote.
      which: see `load_run`.
      ema: see `load_run`.

    Raises:
      ValueError: if there is no run, or it trains no such network or average.
    """
    command, values = read_run(workdir)
    config = recorded_config(values)
    check(config)
    trained = "teacher" if command == "train-teacher" else "student"
    which = which or trained
    if which == "student" and trained == "teacher":
        raise Refused(
            f"--which=student, but {workdir} holds a run of `{command}`, expected one of "
            f"`distill`; use --which=teacher or another --workdir."
        )
    if ema is not None and (which, ema) not in [("student", d) for d in config.optim.ema_decays]:
        raise Refused(
            f"--ema={ema:g}, expected one of optim.ema_decays={tuple(config.optim.ema_decays)} of "
            f"the run in {workdir}, and --which=student; leave it away for the student itself."
        )
    return trained, which, config


def sample_run(
    workdir: str | Path,
    out: str | Path,
    *,
    num: int = 100,
    seed: int = 0,
    classes: Sequence[int] | None = None,
    which: str | None = None,
    ema: float | None = None,
    weights: str = "",
    checkpoint: int | None = None,
) -> Path:
    """Sample a run and write one PNG grid.

    Args:
      workdir: the run folder.
      out: the PNG to write.
      num: how many images.
      seed: of the noise.
      classes: class numbers to cycle through; None is all.
      which: see `load_run`.
      ema: see `load_run`.
      weights: see `load_run`.
      checkpoint: the step of the checkpoint to sample from; None is the run's latest export.

    Returns:
      The file written.

    Raises:
      ValueError: if an argument is out of range or the run has no such weights.
    """
    if num < 1:
        raise Refused(f"--num={num} images, expected at least 1; try 100.")
    check_seed(seed, "--seed")
    if checkpoint is None:
        which, config, family, file = load_run(workdir, which, ema, weights)
    else:
        trained, which, config = run_recipe(workdir, which, ema)
        family = build_family(config)
        if weights or which != trained:
            raise Refused(
                f"--checkpoint={checkpoint} together with --weights or --which={which}, expected "
                f"the {trained} that the run in {workdir} trains; leave the others away."
            )
    labels = uniform_labels(num, family.num_classes)
    if classes is not None:
        wrong = [c for c in classes if not 0 <= c < family.num_classes]
        if wrong or not classes:
            raise Refused(
                f"--classes={list(classes)}, expected class numbers in "
                f"0..{family.num_classes - 1}; leave --classes away for all of them."
            )
        labels = np.resize(np.asarray(classes, np.int32), num)
    out = Path(out)
    if not out.parent.is_dir():
        raise Refused(f"--out={out} lies in no folder, expected {out.parent} to exist; create it.")
    make = teacher_sampler if which == "teacher" else student_sampler
    batch_size = min(num, config.evaluate.batch_size)
    if checkpoint is None:
        params = family.load(file)
    else:
        params, _ = checkpoint_params(workdir, checkpoint, ema=ema)
    images = sample_images(
        make(family, config), family, params, labels, seed=seed, batch_size=batch_size
    )
    columns = len(classes or ()) if len(classes or ()) > 1 else math.isqrt(num - 1) + 1
    image_grid(images, out, rows=-(-num // columns), cols=columns)
    return out
