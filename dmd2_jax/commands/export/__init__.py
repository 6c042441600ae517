"""`dmd2 export`: a student as a diffusers folder."""

from dmd2_jax.commands.export.command import Options, run

__all__ = ["Options", "run"]
