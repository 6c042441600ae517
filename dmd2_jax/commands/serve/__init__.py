"""`dmd2 serve`: a web page on this machine that draws by a run or a pipeline, and shows a run."""

from dmd2_jax.commands.serve.command import Options, run

__all__ = ["Options", "run"]
