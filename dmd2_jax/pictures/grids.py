"""Pictures for people: grids of samples, real against generated, and their animation.

Pillow and matplotlib are imported by the functions that need them.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.classes import shown
from dmd2_jax.data.reading.dataset import to_uint8
from dmd2_jax.pictures.figure import INK, new_figure, save
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import make_folder, path_of
from dmd2_jax.runtime.whole_file import whole_file
from dmd2_jax.typing import Array, Shaped

_CAPTION = 14  # pixels of a line under an image


def montage(
    images: Shaped[Array | np.ndarray, "n h w c"],
    rows: int,
    cols: int,
    *,
    upscale: int | None = None,
    cell: int = 48,
    gap: int = 4,
    below: int = 0,
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
      below: white pixels under each image, for its caption.

    Returns:
      uint8 RGB array.

    Raises:
      ValueError: if the images are not [n, h, w, 1 or 3] or do not fit.
    """
    images = np.asarray(images if images.dtype == np.uint8 else to_uint8(images))
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) > rows * cols:
        raise Refused(
            f"images have shape {images.shape}, expected [n, h, w, c] with c of 1 or 3 and at "
            f"most rows * cols = {rows * cols} of them; pass fewer or raise rows."
        )
    n, h, w, _ = images.shape
    upscale = upscale or max(1, math.ceil(cell / w))
    images = images.repeat(upscale, axis=1).repeat(upscale, axis=2)
    cell_h, cell_w = h * upscale + gap + below, w * upscale + gap
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
    captions: Sequence[str] | None = None,
) -> None:
    """Write a grid of images as a PNG.

    Args:
      images: [n, h, w, c] uint8, or float in [-1, 1]; filled row by row.
      path: the file; its folder is made.
      rows: number of rows.
      cols: number of columns.
      upscale: whole factor; None takes the smallest that makes an image 48 pixels wide.
      labels: one heading a column, for example class names; None: no headings.
      captions: what stands under each image; None: nothing. What is too long is cut.

    Raises:
      ValueError: if the images do not fit, or there is not one label a column.
    """
    from PIL import Image, ImageDraw

    if labels is not None and len(labels) != cols:
        raise Refused(
            f"{len(labels)} labels, expected {cols}, one a column; pass one heading a column."
        )
    below = 0 if captions is None else _CAPTION
    body = montage(images, rows, cols, upscale=upscale, below=below)
    margin, header = 8, 0 if labels is None else 20
    size = (body.shape[1] + 2 * margin, body.shape[0] + 2 * margin + header)
    picture = Image.new("RGB", size, "white")
    picture.paste(Image.fromarray(body), (margin, margin + header))
    draw, step = ImageDraw.Draw(picture), (body.shape[1] + 4) / cols
    for i, label in enumerate(labels or ()):
        centre = (margin + step * (i + 0.5) - 2, margin + header / 2 - 2)
        text, font = _fitted(str(label), step)
        draw.text(centre, text, fill=INK, font=font, anchor="mm")
    down = (body.shape[0] + 4) / rows
    for i, caption in enumerate(captions or ()):
        row, column = divmod(i, cols)
        centre = (margin + step * (column + 0.5) - 2, margin + header + down * (row + 1) - 11)
        text, font = _fitted(caption, step)
        draw.text(centre, text, fill=INK, font=font, anchor="mm")
    make_folder(path_of(path).parent)
    with whole_file(path) as partial:
        picture.save(partial)


def class_headings(
    labels: Shaped[np.ndarray, " n"], cols: int, names: Sequence[str] | None
) -> dict[str, Any]:
    """Return what `image_grid` writes at images of classes, each class's number and name.

    Args:
      labels: [n] classes of the images, row by row.
      cols: number of columns.
      names: of the classes, in the order of their numbers; None: they have none.

    Returns:
      Its argument `labels` where every column is of one class, else `captions`; {} without names.
    """
    if names is None:
        return {}
    words = [f"{label} {shown(names[label])}" for label in labels]
    columns = [words[i::cols] for i in range(min(cols, len(words)))]
    if len(columns) == cols and all(len(set(column)) == 1 for column in columns):
        return {"labels": [column[0] for column in columns]}
    return {"captions": words}


def _fitted(text: str, width: float) -> tuple[str, Any]:
    """Return a text and a font in which it is at most so wide: smaller, then cut."""
    from PIL import ImageFont

    for size in range(14, 8, -1):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            return text, font
    while len(text) > 1 and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…", font


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
        raise Refused(
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
            raise Refused(
                f"section {heading!r} has {len(images)} images, expected a multiple of {cols}, "
                "one a class in each row; use first_of_each_class."
            )
    bodies = [montage(images, len(images) // cols, cols, cell=64) for images in sections.values()]
    dpi, side, heading_px, top_px = 100, 16, 34, 64 if title else 30
    width = max(body.shape[1] for body in bodies) + 2 * side
    height = sum(body.shape[0] + heading_px for body in bodies) + top_px + side
    figure = new_figure(width / dpi, height / dpi, dpi)
    figure.set_facecolor("white")
    if title:
        figure.text(0.5, 1 - 20 / height, title, ha="center", va="center", size=13, color=INK)
    y = top_px  # pixels from the top: axes are placed by hand so that pixels stay square
    for i, (heading, body) in enumerate(zip(sections, bodies, strict=True)):
        y += heading_px
        figure.text(side / width, 1 - (y - 14) / height, heading, va="center", size=11, color=INK)
        box = (side / width, 1 - (y + body.shape[0]) / height)
        axes = figure.add_axes((*box, body.shape[1] / width, body.shape[0] / height))
        axes.imshow(body, interpolation="nearest", aspect="auto")
        axes.axis("off")
        if i == 0:
            for column, name in enumerate(class_names):
                x = (side + body.shape[1] * (column + 0.5) / cols) / width
                header_y = 1 - (top_px - 10) / height
                figure.text(x, header_y, str(name), ha="center", va="center", size=11, color=INK)
        y += body.shape[0]
    save(figure, path)


def headed_rows(
    groups: Sequence[Sequence[tuple[str, Shaped[Array | np.ndarray, "n h w c"]]]],
    path: str | os.PathLike,
) -> None:
    """Write rows of images below each other, each with its heading at the left.

    Args:
      groups: groups of rows, each row (heading, images [n, h, w, c], uint8 or float in [-1, 1]);
        there is some room between groups.
      path: the PNG file; its folder is made.

    Raises:
      ValueError: if there are no rows.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = [(heading, i, images) for i, group in enumerate(groups) for heading, images in group]
    if not rows:
        raise Refused(f"no rows for {path}, expected at least one; pass some images.")
    font, margin, gap, room = ImageFont.load_default(14), 8, 4, 12
    left = margin + max(int(font.getlength(heading)) for heading, _, _ in rows) + 12
    bodies = [montage(images, 1, len(images), gap=gap) for _, _, images in rows]
    tops = [margin]
    for (_, group, _), (_, following, _), body in zip(rows, rows[1:], bodies, strict=False):
        tops.append(tops[-1] + body.shape[0] + (gap if group == following else room))
    width = left + max(body.shape[1] for body in bodies) + margin
    picture = Image.new("RGB", (width, tops[-1] + bodies[-1].shape[0] + margin), "white")
    draw = ImageDraw.Draw(picture)
    for top, (heading, _, _), body in zip(tops, rows, bodies, strict=True):
        picture.paste(Image.fromarray(body), (left, top))
        middle = (left - 10, top + body.shape[0] / 2)
        draw.text(middle, heading, fill=INK, font=font, anchor="rm")
    make_folder(path_of(path).parent)
    with whole_file(path) as partial:
        picture.save(partial)


def animate(
    frames: Sequence[str | os.PathLike],
    path: str | os.PathLike,
    *,
    most: int = 60,
    seconds: float = 0.2,
) -> None:
    """Write picture files as an endless GIF that rests on its last frame.

    A smaller picture is set below and to the right, on white.

    Args:
      frames: the files, in order.
      path: the GIF file.
      most: with more files than this, that many evenly spaced ones, the first and last included.
      seconds: time a frame; the last stays ten times as long.

    Raises:
      ValueError: if there are no frames.
    """
    from PIL import Image

    if not frames:
        raise Refused(f"no frames for {path}, expected at least one picture; draw one first.")
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int))
    pictures = []
    for i in chosen:
        with Image.open(fetched(frames[i])) as picture:
            pictures.append(picture.convert("RGB"))
    # Those of earlier releases have no names above them.
    width, height = (max(picture.size[i] for picture in pictures) for i in (0, 1))
    pictures = [_on_white(picture, (width, height)) for picture in pictures]
    milliseconds = [int(1000 * seconds)] * (len(pictures) - 1) + [int(10_000 * seconds)]
    first, *others = pictures
    with whole_file(path) as partial:
        first.save(partial, save_all=True, append_images=others, duration=milliseconds, loop=0)


def _on_white(picture: Any, size: tuple[int, int]) -> Any:
    from PIL import Image

    if picture.size == size:
        return picture
    canvas = Image.new("RGB", size, "white")
    canvas.paste(picture, (size[0] - picture.size[0], size[1] - picture.size[1]))
    return canvas
