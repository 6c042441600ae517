"""The base config, where users' recipes look for it: that of dmd2_jax.config.defaults."""

from dmd2_jax.config.defaults import get_config

__all__ = ["get_config"]
