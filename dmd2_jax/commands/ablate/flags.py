"""The flags of `dmd2 ablate`."""

import argparse
from collections.abc import Callable

from dmd2_jax.commands import calls as run

__all__ = ["add_ablate"]

_DESCRIPTION = """\
Distil one teacher in several ways, each with several seeds, measure all students, and print a table
with mean and standard deviation, as papers do, and whether ours stand as the paper's.

example:
  dmd2 ablate --config=configs/ablations/table3.py --workdir=runs/table3
  dmd2 ablate --config=table4 --workdir=runs/table4 --rows=dmd2,no_gan --seeds=0,1
  dmd2 ablate --config=table3 --workdir=runs/table3 --dry_run

writes into --workdir: table.json, table.md and table.png as runs finish, teacher/ (unless
--config.teacher.weights names one), and ROW/seed_N/, the runs. The same command again skips what
is finished and resumes what is not. --config.KEY=VALUE changes the base of all rows; a row's own
changes come after it. docs/ablations.md says how to write a table of your own.
"""


def add_ablate(
    add: Callable[..., argparse.ArgumentParser], commands: argparse._SubParsersAction
) -> None:
    """Add `dmd2 ablate`.

    Args:
      add: makes a command's parser.
      commands: to add it to.
    """
    parser = add(
        commands,
        "ablate",
        run.ablate,
        "run a table of variants and seeds, and compare them",
        _DESCRIPTION,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="an ablation: configs/ablations/table3.py, or table3",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the folder of everything")
    parser.add_argument(
        "--rows", type=_names, default=(), metavar="A,B", help="run these only; default: all"
    )
    parser.add_argument(
        "--seeds",
        type=_seeds,
        default=(),
        metavar="N,M",
        help="of the students; default: the ablation's",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check config, data and folder of every row, trace its program, and stop",
    )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r}, expected names like dmd2,no_gan")
    return names


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}, expected whole numbers like 0,1,2")
    return tuple(int(part) for part in parts)
