"""Patches of an image as tokens, with a fixed table of their places."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.denoiser import CONSTANTS
from dmd2_jax.networks.layers import Conv
from dmd2_jax.runtime.gathering import gathered
from dmd2_jax.typing import Array, DType, Float

__all__ = ["PatchEmbedding", "position_table"]


def position_table(side: int, base_side: int, features: int) -> np.ndarray:
    """Return [side, side, features]: sines and cosines of the column, then those of the row.

    Place i of `side` is the position i base_side / side; frequency k of features / 4 is
    10000^(-4 k / features).

    Args:
      side: places along each axis.
      base_side: what they are counted in.
      features: numbers of a place, divisible by 4.

    Returns:
      The table, float32.

    Source: Vaswani et al. 2017 (1706.03762), section 3.5, for each axis.
    """
    places = np.arange(side, dtype=np.float32) / np.float32(side / base_side)
    quarter = features // 4
    frequencies = 10000.0 ** -(np.arange(quarter) / quarter)
    angles = places.astype(np.float64)[:, None] * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    shape = (side, side, features // 2)
    both = (np.broadcast_to(waves[None], shape), np.broadcast_to(waves[:, None], shape))
    return np.concatenate(both, axis=-1).astype(np.float32)


class PatchEmbedding(nn.Module):
    """Patches as tokens, to which the middle of a table of places is added.

    The table is a variable of the `constants` collection: it travels with the weights and is never
    trained (`dmd2_jax.denoiser.trainable_mask`).

    Attributes:
      features: size of a token.
      patch: side of a patch.
      table_side, base_side: of the table, see `position_table`.
      dtype: type of the computation.
    """

    features: int
    patch: int
    table_side: int
    base_side: int
    dtype: DType = jnp.float32

    def table(self) -> np.ndarray:
        """Return the table's initial value, [1, table_side^2, features] as files hold it."""
        return position_table(self.table_side, self.base_side, self.features).reshape(
            1, -1, self.features
        )

    def _made(self) -> Array:
        # Called back, so that who asks for shapes alone does not compute 226 million numbers.
        shape = (1, self.table_side**2, self.features)
        return jax.pure_callback(self.table, jax.ShapeDtypeStruct(shape, jnp.float32))

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Return the tokens, laid out on their grid."""
        conv = Conv(self.features, self.patch, stride=self.patch, dtype=self.dtype, name="proj")
        tokens = conv(x)
        table = self.variable(CONSTANTS, "pos_embed", self._made).value
        table = gathered(table, CONSTANTS, *self.path, "pos_embed")
        side, (height, width) = self.table_side, tokens.shape[1:3]
        top, left = (side - height) // 2, (side - width) // 2
        places = jax.lax.stop_gradient(table).reshape(side, side, -1)
        cropped = places[top : top + height, left : left + width]
        return (tokens + cropped).astype(self.dtype)
