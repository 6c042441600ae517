"""Normalisation by the root mean square alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmd2_jax.networks.weight import weight
from dmd2_jax.typing import Array, Float

__all__ = ["RmsNorm"]


class RmsNorm(nn.Module):
    """Divide the last axis by its root mean square; y = x / sqrt(mean x^2 + eps) * scale, float32.

    Attributes:
      eps: added to the mean square.

    Source: Zhang and Sennrich 2019 (1910.07467).
    """

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalise `x`; the result has its dtype."""
        scale = weight(self, "scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        wide = x.astype(jnp.float32)
        root = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        return (wide * root * scale).astype(x.dtype)
