"""`dmd2 report`: one self-contained HTML page of one run or of several side by side."""

from dmd2_jax.commands.report.command import Options, run

__all__ = ["Options", "run"]
