"""The flags of `dmd2 report`."""

import argparse
from collections.abc import Callable

from dmd2_jax.commands import calls as run

__all__ = ["add_report"]

_DESCRIPTION = """\
Write one HTML page of a run, or of up to eight side by side: what differs in their configs,
curves, samples over time, metrics with 95 % intervals, speed and memory.

example:
  dmd2 report --workdir=runs/student
  dmd2 report --workdir=runs/one_step --workdir=runs/four_steps --out=comparison.html

The page is one file, loads nothing from anywhere and works offline. Runs are only read, also while
they go on. Figures are those of `dmd2 evaluate`, from each run's metrics.json. The page shows
values of the configs, paths among them: look before passing it on. docs/report.md has the details.
"""


def add_report(
    add: Callable[..., argparse.ArgumentParser], commands: argparse._SubParsersAction
) -> None:
    """Add `dmd2 report`.

    Args:
      add: makes a command's parser.
      commands: to add it to.
    """
    parser = add(
        commands,
        "report",
        run.report,
        "write a web page of a run, or of several side by side",
        _DESCRIPTION,
    )
    parser.add_argument(
        "--workdir", action="append", required=True, metavar="DIR", help="a run; may be repeated"
    )
    parser.add_argument("--out", default="report.html", metavar="HTML", help="default: report.html")
