"""PNG files for people: grids of samples, real against generated, and loss curves.

Pillow and matplotlib are imported by the functions that need them.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmd2_jax.data.dataset import to_uint8
from dmd2_jax.runtime.metrics import read_metrics
from dmd2_jax.typing import Array, Shaped

_INK, _FAINT, _LINE = "#222222", "#9bb8d3", "#1f5a94"


def montage(
    images: Shaped[Array | np.ndarray, "n h w c"],
    rows: int,
    cols: int,
    *,
    upscale: int | None = None,
    cell: int = 48,
    gap: int = 4,
) -> Shaped[np.ndarray, "height width 3"]:
    """Arrange images in rows on white, enlarged by repeating pixels.

    Args:
      images: [n, h, w, c] uint8, or float in [-1, 1]; c is 1 or 3; n <= rows * cols, missing
        ones stay white.
      rows: number of rows.
      cols: number of columns.
      upscale: whole factor; None takes the smallest that makes an image `cell` pixels wide.
      cell: pixels.
      gap: white pixels between images.

    Returns:
      uint8 RGB array.

    Raises:
      ValueError: if the images are not [n, h, w, 1 or 3] or do not fit.
    """
    images = np.asarray(images if images.dtype == np.uint8 else to_uint8(images))
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) > rows * cols:
        raise ValueError(
            f"images have shape {images.shape}, expected [n, h, w, c] with c of 1 or 3 and at "
            f"most rows * cols = {rows * cols} of them; pass fewer or raise rows."
        )
    n, h, w, _ = images.shape
    upscale = upscale or max(1, math.ceil(cell / w))
    images = images.repeat(upscale, axis=1).repeat(upscale, axis=2)
    cell_h, cell_w = h * upscale + gap, w * upscale + gap
    canvas = np.full((rows * cell_h - gap, cols * cell_w - gap, 3), 255, np.uint8)
    for i in range(n):
        top, left = (i // cols) * cell_h, (i % cols) * cell_w
        canvas[top : top + h * upscale, left : left + w * upscale] = images[i]
    return canvas


def image_grid(
    images: Shaped[Array | np.ndarray, "n h w c"],
    path: str | os.PathLike,
    *,
    rows: int,
    cols: int,
    upscale: int | None = None,
    labels: Sequence[object] | None = None,
) -> None:
    """Write a grid of images as a PNG.

    Args:
      images: [n, h, w, c] uint8, or float in [-1, 1]; filled row by row.
      path: the file; its folder is made.
      rows: number of rows.
      cols: number of columns.
      upscale: whole factor; None takes the smallest that makes an image 48 pixels wide.
      labels: one heading a column, for example class names; None: no headings.

    Raises:
      ValueError: if the images do not fit, or there is not one label a column.
    """
    from PIL import Image, ImageDraw, ImageFont

    if labels is not None and len(labels) != cols:
        raise ValueError(
            f"{len(labels)} labels, expected {cols}, one a column; pass one heading a column."
        )
    body = montage(images, rows, cols, upscale=upscale)
    margin, header = 8, 0 if labels is None else 20
    size = (body.shape[1] + 2 * margin, body.shape[0] + 2 * margin + header)
    picture = Image.new("RGB", size, "white")
    picture.paste(Image.fromarray(body), (margin, margin + header))
    if labels is not None:
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
        step = (body.shape[1] + 4) / cols
        for i, label in enumerate(labels):
            centre = (margin + step * (i + 0.5) - 2, margin + header / 2 - 2)
            draw.text(centre, str(label), fill=_INK, font=font, anchor="mm")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def first_of_each_class(
    images: Shaped[Array | np.ndarray, "n h w c"],
    labels: Shaped[Array | np.ndarray, " n"],
    num_classes: int,
    rows: int,
) -> Shaped[np.ndarray, "m h w c"]:
    """Choose the first `rows` images of every class, in the order of `class_rows`.

    Args:
      images: [n, h, w, c].
      labels: [n] classes.
      num_classes: how many classes there are.
      rows: how many images of each.

    Returns:
      [rows * num_classes, h, w, c]: row by row, one column a class.

    Raises:
      ValueError: if a class has fewer than `rows` images.
    """
    labels = np.asarray(labels)
    chosen = [np.flatnonzero(labels == label)[:rows] for label in range(num_classes)]
    counts = {label: len(found) for label, found in enumerate(chosen) if len(found) < rows}
    if counts:
        raise ValueError(
            f"images of each class: {counts}, expected at least {rows}; sample more images."
        )
    return np.asarray(images)[np.stack(chosen, axis=1).reshape(-1)]


def class_rows(
    sections: Mapping[str, Shaped[Array | np.ndarray, "n h w c"]],
    path: str | os.PathLike,
    *,
    class_names: Sequence[object],
    title: str = "",
) -> None:
    """Write sections of images above each other, one column a class.

    Args:
      sections: heading (for example "student, 1 network call, FID 3.1") -> images
        [rows * num_classes, h, w, c] as `first_of_each_class` returns them.
      path: the PNG file; its folder is made.
      class_names: one a column.
      title: above everything.

    Raises:
      ValueError: if a section is not a whole number of rows.
    """
    cols = len(class_names)
    for heading, images in sections.items():
        if len(images) % cols or len(images) == 0:
            raise ValueError(
                f"section {heading!r} has {len(images)} images, expected a multiple of {cols}, "
                "one a class in each row; use first_of_each_class."
            )
    pyplot = _pyplot()
    bodies = [montage(images, len(images) // cols, cols, cell=64) for images in sections.values()]
    dpi, side, heading_px, top_px = 100, 16, 34, 64 if title else 30
    width = max(body.shape[1] for body in bodies) + 2 * side
    height = sum(body.shape[0] + heading_px for body in bodies) + top_px + side
    figure = pyplot.figure(figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="white")
    if title:
        figure.text(0.5, 1 - 20 / height, title, ha="center", va="center", size=13, color=_INK)
    y = top_px  # pixels from the top: axes are placed by hand so that pixels stay square
    for i, (heading, body) in enumerate(zip(sections, bodies, strict=True)):
        y += heading_px
        figure.text(side / width, 1 - (y - 14) / height, heading, va="center", size=11, color=_INK)
        box = (side / width, 1 - (y + body.shape[0]) / height)
        axes = figure.add_axes((*box, body.shape[1] / width, body.shape[0] / height))
        axes.imshow(body, interpolation="nearest", aspect="auto")
        axes.axis("off")
        if i == 0:
            for column, name in enumerate(class_names):
                x = (side + body.shape[1] * (column + 0.5) / cols) / width
                header_y = 1 - (top_px - 10) / height
                figure.text(x, header_y, str(name), ha="center", va="center", size=11, color=_INK)
        y += body.shape[0]
    _save(figure, path)


def loss_curves(
    metrics: str | os.PathLike | Iterable[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    x_label: str = "step",
) -> None:
    """Write one PNG with a panel for every metric over the course of a run.

    A panel is logarithmic where all values are positive and span a factor of 100 or more. With 40
    points or more the points are faint and their running median is drawn over them. What is
    not a finite number is left out.

    Args:
      metrics: a metrics.jsonl, or its rows; x is their "step".
      path: the PNG file; its folder is made.
      x_label: what a step is, for example "cycle".

    Raises:
      ValueError: if there is nothing to draw.
    """
    rows = read_metrics(Path(metrics)) if isinstance(metrics, (str, os.PathLike)) else metrics
    curves = _curves(rows)
    if not curves:
        raise ValueError(
            f"{metrics if rows is not metrics else 'metrics'}: no row has a step and a finite "
            "number, expected at least one; look whether the run got as far as its first report."
        )
    pyplot = _pyplot()
    cols = min(3, len(curves))
    panel_rows = math.ceil(len(curves) / cols)
    figure, grid = pyplot.subplots(
        panel_rows, cols, figsize=(4.2 * cols, 2.6 * panel_rows), squeeze=False, dpi=110
    )
    for axes, (name, (x, y)) in zip(grid.flat, curves.items(), strict=False):
        _panel(axes, name, x, y)
    for axes in grid.flat[len(curves) :]:
        axes.axis("off")
    for axes in grid.flat[max(0, len(curves) - cols) : len(curves)]:  # the lowest of each column
        axes.set_xlabel(x_label, size=9, color=_INK)
    figure.tight_layout()
    _save(figure, path)


def _curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Collect the finite (step, value) pairs of every metric, in order of first appearance."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name != "step" and "step" in row and is_number and math.isfinite(value):
                points.setdefault(name, []).append((row["step"], value))
    return {name: tuple(np.array(pairs, float).T) for name, pairs in points.items()}


def _panel(axes, name: str, x: np.ndarray, y: np.ndarray) -> None:
    """Draw one metric."""
    many = len(y) >= 40
    axes.plot(
        x,
        y,
        color=_FAINT if many else _LINE,
        lw=0.8 if many else 1.6,
        marker="o" if len(y) < 3 else None,
        ms=4,
    )
    if many:
        reach = max(2, len(y) // 40)
        smooth = [np.median(y[max(0, i - reach) : i + reach + 1]) for i in range(len(y))]
        axes.plot(x, smooth, color=_LINE, lw=1.6)
    if y.min() > 0 and y.max() / y.min() >= 100:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_title(name.replace("_", " "), size=10, color=_INK, loc="left")
    axes.tick_params(labelsize=8, colors=_INK)
    axes.grid(True, color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)


def _pyplot():
    """Import pyplot for drawing to files, on machines without a display too."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path: str | os.PathLike) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    _pyplot().close(figure)
