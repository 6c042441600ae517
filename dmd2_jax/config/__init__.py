"""Config files and the changes to them; knows no jax."""

from dmd2_jax.config.load import load_config

__all__ = ["load_config"]
