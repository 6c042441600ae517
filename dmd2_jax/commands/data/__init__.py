"""`dmd2 data`: look at a data source, or write it as array_record."""

from dmd2_jax.commands.data.command import Options, run

__all__ = ["Options", "run"]
