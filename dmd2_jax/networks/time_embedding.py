"""How published networks read a number, such as the time: sinusoids, then two linear maps."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from dmd2_jax.networks.layers import Linear
from dmd2_jax.typing import Array, DType, Float

__all__ = ["TimestepEmbedding", "sinusoids"]

_MAX_PERIOD = 10000.0


def sinusoids(
    values: Float[Array, " b"], features: int, *, cosine_first: bool, freq_shift: float
) -> Float[Array, "b d"]:
    """Embed scalars as [sin(v f), cos(v f)], f_i = 10000^(-i / (d / 2 - freq_shift)).

    Args:
      values: [b].
      features: even size d of the embedding.
      cosine_first: whether the cosines come before the sines.
      freq_shift: 0: the last frequency is one step short of 1 / 10000; 1: exactly that.

    Returns:
      [b, d] float32.

    Source: Ho et al. 2020 (2006.11239), appendix B.
    """
    half = features // 2
    # In float32 as the field computes it: the exponents' rounding is part of the weights. NumPy's
    # float32 exp is off by up to three roundings, on some processors, which at time 1000 is 3e-5.
    exponents = np.float32(-np.log(_MAX_PERIOD)) * np.arange(half, dtype=np.float32)
    exact = np.exp((exponents / np.float32(half - freq_shift)).astype(np.float64))
    frequencies = exact.astype(np.float32)
    angles = values.astype(jnp.float32)[:, None] * frequencies
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if cosine_first else parts, axis=-1)


class TimestepEmbedding(nn.Module):
    """Two linear maps with a silu between them, after an optional condition is added.

    Attributes:
      features: size of the embedding.
      condition_dim: size of the condition (a guidance scale's embedding, in few-step models), or
        None.
      dtype: type of the computation.
      use_bias: whether the maps have biases.
    """

    features: int
    condition_dim: int | None = None
    dtype: DType = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b c"], condition: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b d"]:
        """Return the embedding of `x`."""
        if condition is not None:
            project = Linear(x.shape[-1], use_bias=False, dtype=self.dtype, name="cond_proj")
            x = x + project(condition)
        settings = {"use_bias": self.use_bias, "dtype": self.dtype}
        h = nn.silu(Linear(self.features, **settings, name="linear_1")(x))
        return Linear(self.features, **settings, name="linear_2")(h)
