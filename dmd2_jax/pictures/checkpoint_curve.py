"""One picture of how far from the real images a run's checkpoints are."""

import os
from collections.abc import Mapping

from dmd2_jax.config.refused import Refused
from dmd2_jax.pictures.figure import FAINT, INK, LINE, new_figure, save

__all__ = ["checkpoint_curve"]


def checkpoint_curve(
    values: Mapping[int, float],
    path: str | os.PathLike,
    *,
    title: str,
    floor: float | None = None,
) -> None:
    """Write a PNG of a figure of which less is better, over the checkpoints of a run.

    The best one is marked and named.

    Args:
      values: step of the checkpoint -> the figure; at least one.
      path: the PNG file; its folder is made.
      title: of the picture.
      floor: the figure of real images, drawn as a line.

    Raises:
      ValueError: if there are no values.
    """
    if not values:
        raise Refused("got no checkpoints to draw, expected at least one; measure some.")
    steps = sorted(values)
    best = min(steps, key=lambda step: values[step])
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    axes.plot(steps, [values[step] for step in steps], color=LINE, marker="o", markersize=4)
    axes.plot([best], [values[best]], color=LINE, marker="o", markersize=9, fillstyle="none")
    axes.annotate(
        f"{values[best]:.3f} at {best}",
        (best, values[best]),
        xytext=(0, 10),
        textcoords="offset points",
        ha="center",
        color=INK,
        size=9,
    )
    if floor is not None:
        axes.axhline(floor, color=FAINT, linestyle="--", label="real, half to half")
        axes.legend(frameon=False, fontsize=8)
    positive = [value for value in (*values.values(), floor or 1.0) if value > 0]
    if len(positive) == len(values) + 1 and max(positive) > 100 * min(positive):
        axes.set_yscale("log")
    axes.margins(x=0.1, y=0.18)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title, size=10, color=INK)
    axes.set_xlabel("checkpoint", size=9, color=INK)
    axes.set_ylabel("FID", size=9, color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    save(figure, path)
