"""A picture of a run folder, which is not trusted."""

import warnings
from pathlib import Path
from typing import Any

__all__ = ["read_png"]


def read_png(path: Path) -> Any:
    """Return a PNG as Pillow's image in RGB, decoded whole.

    Args:
      path: of this machine.

    Returns:
      The image; None if it is no whole PNG, which may be half written, or one of very many pixels.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as opened:
                return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning):
        return None
