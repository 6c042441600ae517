"""`dmd2 demo`: the whole story on handwritten digits."""

from dmd2_jax.commands.demo.command import Options, run

__all__ = ["Options", "run"]
