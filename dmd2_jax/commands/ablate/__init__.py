"""`dmd2 ablate`: one teacher, many students, one table."""

from dmd2_jax.commands.ablate.command import Options, run

__all__ = ["Options", "run"]
