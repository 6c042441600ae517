"""`dmd2 convert`: weights from one format to another."""

from dmd2_jax.commands.convert.command import Options, run

__all__ = ["Options", "run"]
