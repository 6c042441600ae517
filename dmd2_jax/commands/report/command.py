"""Write a web page of a run, or of several side by side.

Write one HTML page of a run, or of up to eight side by side: what differs in their configs,
curves, samples over time, metrics with 95 % intervals, speed and memory.

example:
  dmd2 report --workdir=runs/student
  dmd2 report --workdir=runs/one_step --workdir=runs/four_steps --out=comparison.html

The page is one file, loads nothing from anywhere and works offline. Runs are only read, also while
they go on. Figures are those of `dmd2 evaluate`, from each run's metrics.json. The page shows
values of the configs, paths among them: look before passing it on. docs/report.md has the details.
"""

import dataclasses
from pathlib import Path

from dmd2_jax.config.flags import flag

__all__ = ["Options", "run"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 report` is asked for."""

    workdir: tuple[str, ...] = flag("a run; may be repeated", metavar="DIR", repeated=True)
    out: str = flag("the page", default="report.html", metavar="HTML")


def run(options: Options) -> Path:
    """Write the page; return its path."""
    from dmd2_jax.commands.report.write import write_report

    path = write_report(options.workdir, options.out)
    print(f"report: {path}")
    return path
