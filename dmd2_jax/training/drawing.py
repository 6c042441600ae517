"""The pictures that a training run draws of itself as it goes, always from the same noise."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.sizes import say_sizes, size_of
from dmd2_jax.data.reading.classes import shown
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.diffusion.schedules import add_noise
from dmd2_jax.pictures.curves import loss_curves
from dmd2_jax.pictures.grids import animate, headed_rows, image_grid
from dmd2_jax.recipe.open import Family, Recipe
from dmd2_jax.run.metrics import METRICS, read_metrics
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.sampling.samplers import LARGE_LATENT, Sampler, grid_labels, sample_images
from dmd2_jax.text2image.pipeline import open_decoder
from dmd2_jax.typing import Array, Float, Int, Params, PyTree, Shaped, expand

__all__ = [
    "Comparison",
    "Drawn",
    "draw_progress",
    "draw_scores",
    "draw_shape",
    "score_comparison",
    "visible",
]

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where the teacher and the critic are compared: fractions of the schedule's levels."""

GAIN = 4.0
"""How much their difference is amplified; always the same, so that pictures compare."""


class Drawn(NamedTuple):
    """What `draw_progress` has drawn.

    Attributes:
      images: [n, h, w, c] float, those of the grid; see `grid_labels` for their order.
      pictures: name -> file.
    """

    images: Float[np.ndarray, "n h w c"]
    pictures: dict[str, Path]


def draw_progress(
    recipe: Recipe,
    sampler: Sampler,
    params: Params,
    workdir: Path,
    done: int,
    *,
    unit: str,
    last: bool,
    rows: int = 8,
    scales: Sequence[float] = (),
) -> Drawn:
    """Draw the sample grid and the curves of a run, and at its end the animation of all grids.

    Args:
      recipe: the recipe.
      sampler: of what is trained.
      params: its weights, on any devices.
      workdir: the run folder; grid_STEP.png, curves.png and progress.gif go there.
      done: steps taken.
      unit: what a step is called, for example "cycle".
      last: whether the run ends there.
      rows: of the grid.
      scales: of a student that takes the guidance scale, those that are drawn, each of the same
        noise; (): it takes none.
    """
    images, labels, rows, columns = _grid(recipe, sampler, params, rows, scales)
    pictures = {"grid": workdir / f"grid_{done:07d}.png"}
    pixels = _decoded(recipe, images)
    if scales:
        _scale_grid(pixels, scales, columns, pictures["grid"])
    elif recipe.prompts is None and recipe.family.num_classes > 1:
        names = recipe.dataset.class_names
        _class_grid(pixels, labels, columns, names, pictures["grid"])
    else:
        image_grid(pixels, pictures["grid"], rows=rows, cols=columns)
    if reports := read_metrics(workdir / METRICS):  # none before the first `log.every`
        pictures["curves"] = workdir / "curves.png"
        loss_curves(reports, pictures["curves"], x_label=unit)
    if last:
        animate(sorted(workdir.glob("grid_[0-9]*.png")), workdir / "progress.gif")
    return Drawn(images, pictures)


def draw_shape(
    recipe: Recipe,
    sampler: Sampler,
    params: Params,
    workdir: Path,
    done: int,
    scales: Sequence[float] = (),
) -> Path:
    """Draw the sample grid of another shape than the first; see `draw_progress`.

    Returns:
      The picture, shape_HEIGHTxWIDTH_STEP.png, of the latents' height and width.
    """
    images, _, rows, columns = _grid(recipe, sampler, params, 8, scales)
    size = say_sizes(size_of(*recipe.family.image_shape[:2]))
    picture, pixels = workdir / f"shape_{size}_{done:07d}.png", _decoded(recipe, images)
    if scales:
        _scale_grid(pixels, scales, columns, picture)
    else:
        image_grid(pixels, picture, rows=rows, cols=columns)
    return picture


def _grid(
    recipe: Recipe, sampler: Sampler, params: Params, rows: int, scales: Sequence[float]
) -> tuple[np.ndarray, PyTree, int, int]:
    """Return (images of a grid, what they are of, rows, columns)."""
    labels, rows, columns = grid_labels(recipe, rows)
    if scales:  # each has the first rows
        rows = max(rows // len(scales), 1)
        labels = jax.tree.map(lambda array: array[: rows * columns], labels)
    params = _on_one_device(params)
    images = [
        sample_images(
            sampler,
            recipe.family,
            params,
            labels,
            seed=recipe.config.seed,
            batch_size=min(rows * columns, recipe.config.evaluate.batch_size),
            guidance=scale,
        )
        for scale in scales or (None,)
    ]
    return np.concatenate(images), labels, rows * len(images), columns


def _scale_grid(
    images: Shaped[np.ndarray, "n h w c"], scales: Sequence[float], columns: int, path: Path
) -> None:
    """Write some rows for each guidance scale, the scale beside them."""
    groups = [
        [(f"w = {scale:.3g}", part[i : i + columns]) for i in range(0, len(part), columns)]
        for scale, part in zip(scales, np.split(images, len(scales)), strict=True)
    ]
    headed_rows(groups, path)


def _class_grid(
    images: Shaped[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    columns: int,
    names: Sequence[str] | None,
    path: Path,
) -> None:
    """Write a row for each class, its number and name beside it, of images by `grid_labels`."""

    def heading(label: int) -> str:
        return str(label) if names is None else f"{label} {shown(names[label], 30)}"

    headed_rows([[(heading(labels[i]), images[i::columns]) for i in range(columns)]], path)


class Comparison(NamedTuple):
    """What the two score networks make of the same noised samples.

    Attributes:
      sigma: [l] noise standard deviations.
      x_t: [l, b, ...] the noised samples, scaled to the standard deviation of an image.
      x_0_teacher, x_0_critic: [l, b, ...] the estimates of x_0 from x_t.
    """

    sigma: np.ndarray
    x_t: np.ndarray
    x_0_teacher: np.ndarray
    x_0_critic: np.ndarray


def score_comparison(
    family: Family,
    guidance: float | None,
    seed: int,
    told: tuple[Denoiser, Denoiser] | None = None,
) -> Callable[[Params, Params, Array, Array], Comparison]:
    """Make compare(teacher_params, critic_params, x_0 [b, ...], cond) -> Comparison.

    Args:
      family: the networks.
      guidance: the teacher's, see `guided_x0`; the critic has none.
      seed: of the noise, which is the same in every call.
      told: teacher and critic whose conditions are `Guided`, in place of the family's.
    """
    schedule = family.denoiser.schedule
    chosen = [round(fraction * (len(schedule.levels) - 1)) for fraction in LEVELS]
    key = stream_key(jax.random.key(seed), "draw/scores")
    teacher_net, critic_net = told or (family.denoiser, family.denoiser)
    critic_x0 = jax.jit(critic_net.x0)
    guided = guided_x0(teacher_net, guidance)
    # Without guidance the two are one function, compiled once.
    teacher_x0 = critic_x0 if guided is critic_net.x0 else jax.jit(guided)

    def compare(teacher: Params, critic: Params, x_0: Array, cond: Array) -> Comparison:
        b, lead = x_0.shape[0], (len(LEVELS), x_0.shape[0])
        t = jnp.repeat(jnp.asarray(schedule.levels[np.array(chosen)]), b)
        cond = jax.tree.map(lambda c: jnp.tile(c, (len(LEVELS),) + (1,) * (c.ndim - 1)), cond)
        x_0 = jnp.tile(x_0, (len(LEVELS),) + (1,) * (x_0.ndim - 1))
        x_t = add_noise(schedule, x_0, jax.random.normal(key, x_0.shape), t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        shown = x_t / expand(jnp.sqrt(alpha**2 + sigma**2), x_t)
        images = (shown, teacher_x0(teacher, x_t, t, cond), critic_x0(critic, x_t, t, cond))
        return Comparison(
            np.asarray(sigma).reshape(lead)[:, 0],
            *(np.asarray(image).reshape((*lead, *image.shape[1:])) for image in images),
        )

    return compare


def draw_scores(x_0: Float[np.ndarray, "b h w c"], scores: Comparison, path: Path) -> None:
    """Write the student's samples above what teacher and critic make of them at each noise level.

    Args:
      x_0: [b, h, w, c] the samples.
      scores: from `score_comparison`.
      path: the PNG file.
    """
    groups = [[("generated x", visible(x_0))]]
    for sigma, x_t, teacher, critic in zip(*scores, strict=True):
        rows = [
            (f"x_t, sigma {sigma:.3g}", x_t),
            ("teacher x_0", teacher),
            ("critic x_0", critic),
            (f"critic - teacher, x {GAIN:g}", GAIN * (critic - teacher)),
        ]
        groups.append([(title, visible(images)) for title, images in rows])
    headed_rows(groups, path)


def visible(images: Float[np.ndarray, "... c"]) -> Float[np.ndarray, "... d"]:
    """Return what a picture shows of samples: images as they are, of latents three channels.

    Latents are about standard normal: three standard deviations become the range of an image.
    """
    return images if images.shape[-1] in (1, 3) else np.asarray(images[..., :3]) / 3.0


def _decoded(recipe: Recipe, images: np.ndarray) -> np.ndarray:
    """Return the pictures of samples, latents decoded where that costs little memory."""
    if images.shape[-1] in (1, 3) or max(images.shape[1:3]) > LARGE_LATENT:
        return visible(images)
    config = recipe.config
    folder = config.model.get("vae", "") or config.model.get("pipeline", "")
    decode = open_decoder(folder, config.teacher.get("variant", ""))
    return visible(images) if decode is None else decode(images)


def _on_one_device(params: Params) -> Params:
    return jax.device_put(params, jax.local_devices()[0])
