"""What the pictures have in common: their colours, and figures without a display."""

import os

from dmd2_jax.runtime.places import make_folder, path_of
from dmd2_jax.runtime.whole_file import whole_file

INK, FAINT, LINE = "#222222", "#9bb8d3", "#1f5a94"
"""Text; single points; the line through them."""


def pyplot():
    """Import pyplot for drawing to files, on machines without a display too."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure, path: str | os.PathLike) -> None:
    """Write a figure, make its folder, and release it."""
    make_folder(path_of(path).parent)
    with whole_file(path) as partial:
        figure.savefig(partial)
    pyplot().close(figure)
