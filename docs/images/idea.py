"""Draw idea.png from pictures that runs have made: `python docs/images/idea.py`."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

HERE = Path(__file__).parent
GREY, BLUE = "0.35", "#2a6db0"


def strip(name: str, left: int, top: int, pitch: int, side: int) -> np.ndarray:
    """Cut the ten pictures of one row of a grid out, beside each other."""
    grid = imread(HERE / name)[top : top + side, :, :3]
    tiles = [grid[:, left + i * pitch : left + i * pitch + side] for i in range(10)]
    return np.concatenate(
        [np.pad(t, ((0, 0), (0, 4), (0, 0)), constant_values=1) for t in tiles], 1
    )


def main() -> None:
    """Draw."""
    figure = Figure(figsize=(11, 4.6), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    noise = np.random.default_rng(0).normal(0.5, 0.25, (24, 24)).clip(0, 1)
    digits = [strip("summary.png", 16, top, 68, 64) for top in (400, 702)]
    fashion = strip("fashion_student.png", 8, 308, 60, 56)
    rows = [
        ("teacher", "35 network calls, 10.9 ms an image", digits[0], 35, GREY),
        ("student", "1 network call, 0.3 ms: digits", digits[1], 1, BLUE),
        ("student", "1 network call, 3.8 ms: Fashion-MNIST (its teacher 93 ms)", fashion, 1, BLUE),
    ]
    for i, (who, what, images, calls, colour) in enumerate(rows):
        bottom = 0.69 - 0.32 * i
        left = figure.add_axes((0.01, bottom, 0.085, 0.2))
        left.imshow(noise, cmap="gray")
        left.set_axis_off()
        way = figure.add_axes((0.1, bottom, 0.24, 0.2), xlim=(0, 1), ylim=(0, 1))
        way.set_axis_off()
        hops = np.linspace(0.02, 0.9, calls + 1)
        way.plot(
            hops, np.full(calls + 1, 0.5), "-o" if calls > 1 else "-", color=colour, ms=3, lw=2
        )
        way.annotate("", (1, 0.5), (0.88, 0.5), arrowprops={"arrowstyle": "-|>", "color": colour})
        way.text(0.48, 0.68, who, ha="center", fontsize=13, weight="bold", color=colour)
        right = figure.add_axes((0.35, bottom, 0.64, 0.2))
        right.imshow(images, aspect="equal", interpolation="nearest")
        right.set_axis_off()
        figure.text(0.35, bottom + 0.225, what, fontsize=11, color=colour)
    figure.text(0.01, 0.02, "noise", fontsize=10, color=GREY)
    canvas.print_png(HERE / "idea.png")


if __name__ == "__main__":
    main()
