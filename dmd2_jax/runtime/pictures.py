"""The PNG files of a run folder: image grids and loss curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

__all__ = ["save_curves", "save_grid", "to_uint8"]


def to_uint8(images: Float[np.ndarray, "..."]) -> np.ndarray:
    """Map images from [-1, 1] to 0..255, clipped and rounded."""
    scaled = (np.asarray(images, np.float32) + 1.0) * 127.5
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def save_grid(
    images: Shaped[np.ndarray, "n h w c"],
    path: str | Path,
    *,
    columns: int | None = None,
    pixel: int | None = None,
) -> None:
    """Write images as one PNG, row by row.

    Args:
      images: [n, h, w, 1 or 3], float in [-1, 1] or uint8.
      path: the file to write.
      columns: images a row; the square root of n, rounded up, by default.
      pixel: screen pixels a pixel; by default so many that an image is about 64 wide.

    Raises:
      ValueError: if the images have neither 1 nor 3 channels.
    """
    from PIL import Image

    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images have shape {images.shape}, expected [n, h, w, 1 or 3]; decode latents first."
        )
    if images.dtype != np.uint8:
        images = to_uint8(images)
    number, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(number)))
    rows = -(-number // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    scale = pixel or max(1, 64 // width)
    sheet = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(path)


def save_curves(rows: Sequence[dict[str, Any]], path: str | Path, *, unit: str = "step") -> None:
    """Plot every number of the metric rows against their step, one panel each.

    Args:
      rows: as `read_metrics` returns them; lists are plotted by their mean.
      path: the PNG to write.
      unit: what a step is called on the axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    if not names:
        return
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        values = [np.nan if None in _listed(value) else np.mean(value) for _, value in points]
        axis.plot([step for step, _ in points], values, linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(unit, fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
