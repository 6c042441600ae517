"""`dmd2 new`: look at data, and write a recipe for them."""

from dmd2_jax.commands.new.command import Options, run

__all__ = ["Options", "run"]
