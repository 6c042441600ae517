"""Pictures inside the page, as data: URIs of a bounded size."""

import base64
import io
import math
from pathlib import Path
from typing import NamedTuple

from dmd2_jax.pictures.read import read_png

__all__ = ["Picture", "embed", "evenly"]

_WIDEST = 960
_NARROWEST = 48


class Picture(NamedTuple):
    """A picture to embed: its data: URI, and its size in pixels."""

    uri: str
    width: int
    height: int


def embed(path: Path, most_bytes: int) -> Picture | None:
    """Return a PNG as data, made smaller until it fits.

    It is decoded and written anew, so that nothing but its pixels gets into the page.

    Args:
      path: a PNG file; not trusted.
      most_bytes: of the PNG, before base64 makes it a third longer.

    Returns:
      The picture, at most 960 pixels wide; None if it cannot be decoded, or fits at no size.
    """
    from PIL import Image

    image = read_png(path)
    if image is None:
        return None
    width = min(_WIDEST, image.width)
    while True:
        height = max(1, round(image.height * width / image.width))
        whole = width == image.width
        scaled = image if whole else image.resize((width, height), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        scaled.save(data, "PNG", optimize=True)
        if (size := data.tell()) <= most_bytes:
            text = base64.b64encode(data.getvalue()).decode("ascii")
            return Picture(f"data:image/png;base64,{text}", width, height)
        if width <= _NARROWEST:
            return None
        # Bytes go with the area, roughly.
        width = max(_NARROWEST, int(width * min(0.9, math.sqrt(most_bytes / size))))


def evenly(steps: list[int], most: int) -> list[int]:
    """Return at most `most` (from 2) of the steps, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
