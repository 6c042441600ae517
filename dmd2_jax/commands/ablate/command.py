"""Run a table of variants and seeds, and compare them.

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

from typing import Any

from dmd2_jax.commands.ablate.options import Options

__all__ = ["Options", "run"]

RESUMES = True


def run(options: Options) -> dict[str, Any]:
    """Run what is not finished, print the table, and return what table.json holds."""
    from dmd2_jax.commands.ablate.runs import ablate

    return ablate(options)
