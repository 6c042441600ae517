"""Patches of a latent as vectors, and back, as FLUX and its relatives order them."""

from dmd2_jax.typing import Array, Float

__all__ = ["pack", "unpack"]

_PATCH = 2


def pack(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    """Return patches of 2 x 2 pixels as vectors, in the order channel, row, column."""
    b, h, w, c = x.shape
    patches = x.reshape(b, h // _PATCH, _PATCH, w // _PATCH, _PATCH, c).transpose(0, 1, 3, 5, 2, 4)
    return patches.reshape(b, h // _PATCH, w // _PATCH, c * _PATCH**2)


def unpack(x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 c"]:
    """Return the pixels of `pack`'s patches."""
    b, h, w, d = x.shape
    patches = x.reshape(b, h, w, d // _PATCH**2, _PATCH, _PATCH).transpose(0, 1, 4, 2, 5, 3)
    return patches.reshape(b, h * _PATCH, w * _PATCH, d // _PATCH**2)
