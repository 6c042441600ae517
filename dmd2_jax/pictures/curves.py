"""One picture of a run's metrics: curves, curves by noise level, histograms over time."""

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.pictures.figure import FAINT, INK, LINE, new_figure, save
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.runtime.summaries import histogram_edges

_REAL, _THIRD = "#d9822b", "#6b8e3d"
_TOGETHER = {
    "D logits": {"logits_real": _REAL, "logits_fake": LINE, "logits_generator": _THIRD},
    "image mean": {"generated_mean": LINE, "real_mean": _REAL},
    "image std": {"generated_std": LINE, "real_std": _REAL},
    "saturation (share)": {"generated_saturation": LINE, "real_saturation": _REAL},
    "learning rate": {"generator_lr": LINE, "critic_lr": _REAL},
}
"""Panels of several metrics: title -> metric -> colour."""

_ORDER = (
    *("generator_loss", "dm_loss", "gan_generator_loss", "regression_loss", "generator_grad_norm"),
    *("critic_loss", "denoising_loss", "gan_critic_loss", "critic_grad_norm"),
    *("dm_grad_norm", "dm_normalizer", "dm_grad_norm_by_level", "critic_error_by_level"),
    *("D logits", "logits_real_histogram", "logits_fake_histogram"),
    *("image mean", "image std", "saturation (share)", "learning rate"),
)
"""Metrics (or panels of several) that stand first, in the order of reading; others follow."""

_COUNTERS = frozenset({"generator_turns", "critic_turns"})
_MOST = 400  # points of a curve: a panel has no more pixels

Series = tuple[np.ndarray, np.ndarray]
"""Steps [n] and the values there: [n] of a curve, [n, bins] of a list."""


def loss_curves(
    metrics: str | os.PathLike | Iterable[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    x_label: str = "step",
) -> None:
    """Write one PNG with a panel for every metric over the course of a run.

    A panel is logarithmic where all values are positive and span a factor of 100 or more. With 40
    points or more the points are faint and their running median is drawn over them. A list by
    noise level is one curve a level bin, a histogram a heat map. What is not a finite number is
    left out; what is always 0 is named below the panels.

    Args:
      metrics: a metrics.jsonl, or its rows; x is their "step".
      path: the PNG file; its folder is made.
      x_label: what a step is, for example "cycle".

    Raises:
      ValueError: if there is nothing to draw.
    """
    rows = list(read_metrics(metrics) if isinstance(metrics, (str, os.PathLike)) else metrics)
    curves = _curves(rows)
    if not curves:
        raise Refused(
            f"{metrics if isinstance(metrics, (str, os.PathLike)) else 'metrics'}: no row has a "
            "step and a finite number, expected at least one; look whether the run got as far as "
            "its first report."
        )
    zeros = [name for name, (_, y) in curves.items() if not y.any()]
    if len(zeros) < len(curves):
        curves = {name: xy for name, xy in curves.items() if name not in zeros}
    panels = _panels(curves, _lists(rows))
    cols = min(3 if len(panels) <= 9 else 4, len(panels))
    panel_rows = math.ceil(len(panels) / cols)
    width, height = 4.2 * cols, 2.6 * panel_rows
    figure = new_figure(width, height)
    grid = figure.subplots(panel_rows, cols, squeeze=False)
    for axes, (title, draw) in zip(grid.flat, panels.items(), strict=False):
        axes.margins(x=0.02)
        draw(axes)
        _dress(axes, title)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes in grid.flat[max(0, len(panels) - cols) : len(panels)]:  # the lowest of each column
        axes.set_xlabel(x_label, size=9, color=INK)
    if zeros and len(zeros) <= len(curves):
        text = "always 0: " + ", ".join(_words(name) for name in zeros)
        figure.text(0.995, 0.08 / height, text, size=8, color=INK, ha="right")
    # By hand: matplotlib's own layout draws everything twice.
    figure.subplots_adjust(
        0.55 / width, 0.6 / height, 1 - 0.15 / width, 1 - 0.35 / height, 0.22, 0.38
    )
    save(figure, path)


def _panels(curves: dict[str, Series], lists: dict[str, Series]) -> dict[str, Callable]:
    """Choose the panels, in order: title -> what draws it on given axes."""
    panels: dict[str, tuple[str, Callable]] = {}
    owner = {name: title for title, names in _TOGETHER.items() for name in names}
    for name, (x, y) in curves.items():
        together = _TOGETHER[owner[name]] if name in owner else {}
        present = {other: curves[other] for other in together if other in curves}
        if len(present) > 1:
            colours = {other: together[other] for other in present}
            draw = functools.partial(_several, curves=present, colours=colours)
            panels[owner[name]] = (owner[name], draw)
        elif name not in _COUNTERS:
            panels[name] = (_words(name), functools.partial(_single, x=x, y=y))
    for name, (x, y) in lists.items():
        if name.endswith("_by_level"):
            title = f"{_words(name)} (0 %: least noise)"
            panels[name] = (title, functools.partial(_levels, x=x, y=y))
        elif name.endswith("_histogram"):
            panels[name] = (_words(name), functools.partial(_heat_map, x=x, y=y))
    first = [name for name in _ORDER if name in panels]
    return dict(panels[name] for name in dict.fromkeys([*first, *panels]))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Collect the finite (step, value) pairs of every metric, in order of first appearance."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name != "step" and "step" in row and is_number and math.isfinite(value):
                points.setdefault(name, []).append((row["step"], value))
    return {name: tuple(np.array(pairs, float).T) for name, pairs in points.items()}


def _lists(rows: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Collect (steps [n], entries [n, bins]) of every list; null is NaN."""
    points: dict[str, tuple[list, list]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, list) and "step" in row:
                steps, entries = points.setdefault(name, ([], []))
                steps.append(row["step"])
                entries.append(value)
    return {n: (np.array(s, float), np.array(e, float)) for n, (s, e) in points.items()}


def _single(axes, x: np.ndarray, y: np.ndarray) -> None:
    """Draw one metric: its points, and their running median where they are many."""
    if len(y) < 40:
        axes.plot(x, y, color=LINE, lw=1.6, marker="o" if len(y) < 3 else None, ms=4)
    else:
        kept = _places(len(x))
        axes.plot(x[kept], y[kept], color=FAINT, lw=0.8)
        axes.plot(*running_median(x, y), color=LINE, lw=1.6)
    _scale(axes, y)


def _several(axes, curves: dict[str, Series], colours: dict[str, str]) -> None:
    for name, (x, y) in curves.items():
        label = _words(name).removeprefix("logits ").split(" ")[0]
        axes.plot(*running_median(x, y), color=colours[name], lw=1.4, label=label)
    _scale(axes, np.concatenate([y for _, y in curves.values()]))
    _legend(axes)


def _levels(axes, x: np.ndarray, y: np.ndarray) -> None:
    """Draw one curve for each bin of the noise levels, from dark (least noise) to light."""
    from matplotlib import colormaps

    bins = y.shape[1]
    colours = colormaps["viridis"](np.linspace(0.0, 0.88, bins))
    for i in range(bins):
        there = np.isfinite(y[:, i])
        if there.any():
            label = f"{100 * i // bins}-{100 * (i + 1) // bins} %"
            axes.plot(*running_median(x[there], y[there, i]), color=colours[i], lw=1.3, label=label)
    _scale(axes, y[np.isfinite(y)])
    if axes.lines:
        _legend(axes)


def _heat_map(axes, x: np.ndarray, y: np.ndarray) -> None:
    """Draw a histogram over time: the darker, the larger a bin's share of its moment."""
    groups = np.array_split(np.arange(len(x)), min(len(x), _MOST // 2))
    counts = np.array([y[group].sum(axis=0) for group in groups])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ends = np.array([x[group[-1]] for group in groups])
    begin = x[0] - (x[1] - x[0] if len(x) > 1 else 1.0)
    axes.pcolormesh(
        np.concatenate([[begin], ends]), histogram_edges(y.shape[1]), share.T, cmap="Blues"
    )
    axes.axhline(0.0, color=INK, lw=0.5, ls=":")


def _legend(axes) -> None:
    """Name the lines in one row at the top, in room of its own."""
    names = len(axes.lines)
    axes.legend(
        fontsize=7, frameon=False, ncols=names, loc="upper right", handlelength=0.8,
        columnspacing=0.7, borderaxespad=0.1,
    )  # fmt: skip
    axes.margins(y=0.16)


def _places(n: int) -> np.ndarray:
    """Return at most `_MOST` evenly spaced indices into n points, the ends included."""
    return np.unique(np.linspace(0, n - 1, min(n, _MOST)).round().astype(int))


def running_median(x: np.ndarray, y: np.ndarray) -> Series:
    """Return the running median over a twentieth of 40 points or more, at `_MOST` places."""
    if len(y) < 40:
        return x, y
    reach = max(2, len(y) // 40)
    kept = _places(len(x))
    return x[kept], np.array([np.median(y[max(0, i - reach) : i + reach + 1]) for i in kept])


def _scale(axes, y: np.ndarray) -> None:
    if len(y) and y.min() > 0 and y.max() / y.min() >= 100:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")


def _dress(axes, title: str) -> None:
    # Ticks and the search for a free place of a title are what a picture's time goes into.
    axes.set_title(title, size=10, color=INK, loc="left", y=1.02)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "linear":
            axis.get_major_locator().set_params(nbins=4)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(True, color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
