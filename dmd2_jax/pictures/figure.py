"""What the pictures have in common: their colours, and figures without a display."""

import os

from dmd2_jax.runtime.places import make_folder, path_of
from dmd2_jax.runtime.whole_file import whole_file

INK, FAINT, LINE = "#222222", "#9bb8d3", "#1f5a94"
"""Text; single points; the line through them."""


def new_figure(width: float, height: float, dpi: int = 100):
    """Return an empty figure for a file, on machines without a display too.

    It is not pyplot's: whoever calls this package from a notebook keeps their backend, and their
    figures.

    Args:
      width: inches.
      height: inches.
      dpi: pixels an inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def save(figure, path: str | os.PathLike) -> None:
    """Write a figure, and make its folder."""
    make_folder(path_of(path).parent)
    with whole_file(path) as partial:
        figure.savefig(partial)
