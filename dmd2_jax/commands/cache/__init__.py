"""`dmd2 cache`: images and captions to latents and embeddings."""

from dmd2_jax.commands.cache.command import Options, run

__all__ = ["Options", "run"]
