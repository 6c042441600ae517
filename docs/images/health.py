"""The recipe of the runs of docs/health.md, and their pictures: `python docs/images/health.py`.

As a recipe (`--config=docs/images/health.py`) it is digits_sit.py with half of its blocks and fewer
steps. As a program it reads the runs in runs/health and writes a picture of each beside this file.
"""

import sys
from pathlib import Path

from matplotlib.image import imread
from ml_collections import ConfigDict

from dmd2_jax.config.load import load_config
from dmd2_jax.pictures.figure import INK, LINE, new_figure, save
from dmd2_jax.run.metrics import read_metrics

HERE = Path(__file__).parent
RUNS = ("good", "collapsing", "saturating", "lagging")
PANELS = (
    ("FID", ("fid",)),
    ("recall", ("recall",)),
    ("standard deviation", ("generated_std", "real_std")),
    ("saturation", ("generated_saturation", "real_saturation")),
    ("critic: denoising_loss", ("denoising_loss",)),
)
"""Title of each panel, and what it shows: the run's in blue, the real images' in orange."""


def get_config() -> ConfigDict:
    """Return the recipe."""
    config = load_config("digits_sit").unlock()
    config.name = "health"
    config.model.depth = 2
    config.model.feature_blocks = (0, 1)
    config.teacher.steps = 600
    config.teacher.batch_size = 64
    config.distill.cycles = 120
    config.distill.batch_size = 16
    config.distill.critic_turns = 3
    config.log.every = 3
    config.log.grid_every = 120
    config.log.export_every = 0
    config.log.checkpoint_every = 120
    config.log.teacher_grid_every = 600
    config.log.teacher_export_every = 0
    config.log.evaluate_every = 12
    config.evaluate.training_samples = 200
    return config.lock()


def draw(run: Path, picture: Path) -> None:
    """Write the last images of a run beside its curves.

    Args:
      run: the folder, of a student.
      picture: the PNG.
    """
    rows = read_metrics(run / "metrics.jsonl")
    figure = new_figure(12, 2.7, dpi=80)
    axes = figure.subplots(1, len(PANELS) + 1, width_ratios=(2.2, *[1] * len(PANELS)))
    axes[0].imshow(imread(sorted(run.glob("grid_[0-9]*.png"))[-1]))
    axes[0].set_axis_off()
    for panel, (title, names) in zip(axes[1:], PANELS, strict=True):
        for name, colour in zip(names, (LINE, "#d9822b"), strict=False):
            found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            panel.plot(*zip(*found, strict=True), color=colour)
        for row in rows:
            if any(name.startswith("warning_") for name in row):
                panel.axvspan(
                    row["step"] - 2.5, row["step"] + 2.5, color="#c23b22", alpha=0.12, lw=0
                )
        panel.set_title(title, fontsize=8, color=INK)
        panel.tick_params(labelsize=7)
        panel.set_ylim(bottom=0)
    figure.tight_layout(pad=0.5)
    save(figure, picture)


def main(folder: str = "runs/health") -> None:
    """Draw all of them."""
    for name in RUNS:
        draw(Path(folder) / name, HERE / f"health_{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
