"""One picture of a figure of several variants, each run with several seeds."""

import os
import statistics
from collections.abc import Mapping, Sequence

from dmd2_jax.config.refused import Refused
from dmd2_jax.pictures.figure import FAINT, INK, LINE, new_figure, save

__all__ = ["seed_points"]


def seed_points(
    values: Mapping[str, Sequence[float]],
    path: str | os.PathLike,
    *,
    title: str,
    figure: str,
    lines: Mapping[str, float] | None = None,
) -> None:
    """Write a PNG with a line for each variant: its runs as points, mean and standard deviation.

    Args:
      values: variant -> the figure of each of its runs; empty for one that has none.
      path: the PNG file; its folder is made.
      title: of the picture.
      figure: what is shown, for the axis.
      lines: name -> value of what all are compared with, such as the teacher.

    Raises:
      ValueError: if no variant has a value.
    """
    if not any(values.values()):
        raise Refused("got no runs to draw, expected at least one; finish some.")
    drawing = new_figure(6.4, 1.4 + 0.45 * len(values))
    axes = drawing.subplots()
    for place, runs in enumerate(values.values()):
        if not runs:
            continue
        mean = statistics.fmean(runs)
        deviation = statistics.stdev(runs) if len(runs) > 1 else 0.0
        axes.errorbar([mean], [place], xerr=[deviation], color=LINE, marker="o", capsize=4)
        axes.plot(runs, [place + 0.22] * len(runs), color=FAINT, marker=".", linestyle="none")
    for style, (name, value) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
        axes.axvline(value, color=FAINT, linestyle=style, label=name)
    if lines:
        axes.legend(frameon=False, fontsize=8)
    every = [value for runs in (*values.values(), list((lines or {}).values())) for value in runs]
    if min(every) > 0 and max(every) > 30 * min(every):
        axes.set_xscale("log")
    axes.set_yticks(range(len(values)), list(values), size=9)
    axes.invert_yaxis()
    axes.margins(y=0.12)
    axes.set_title(title, size=10, color=INK)
    axes.set_xlabel(figure, size=9, color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    drawing.tight_layout()
    save(drawing, path)
