"""`dmd2 verify`: a published folder as it is read here, against diffusers."""

from dmd2_jax.commands.verify.command import Options, run

__all__ = ["Options", "run"]
