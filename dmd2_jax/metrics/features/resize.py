"""How each reference implementation brings images to the size and range of its network.

    pytorch_fid   bilinear without antialiasing, pixel centres at half pixels; x / 127.5 - 1
    clean_fid     Pillow's bicubic, which widens its kernel when it shrinks, a channel at a time in
                  float32, cut to 0..255; (x - 128) / 128
    edm           bilinear as TensorFlow 1 had it, output pixel i from i * in / out: up to half a
                  pixel to the upper left; (x - 128) / 128. StyleGAN and EDM, within their network
    patch         no resizing: the central 299 x 299 pixels, cut where torchvision's CenterCrop
                  cuts; (x - 128) / 128, as clean-fid feeds its network

The same images under two of these names differ by more FID than two good models do. All of them
are linear and separable, so each is a matrix for the rows and one for the columns, and runs on the
device with the network.

Source: pytorch-fid's and clean-fid's documentation; G. Parmar et al., On Aliased Resizing and
Surprising Subtleties in GAN Evaluation (2104.11222).
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float64, UInt8

from dmd2_jax.config.refused import Refused
from dmd2_jax.typing import Array, Float

SIZE = 299
"""Pixels of a prepared image's side."""

_BICUBIC = -0.5  # Pillow's a of Keys's kernel


def prepare(name: str, images: UInt8[Array | np.ndarray, "b h w c"]) -> Float[Array, "b 299 299 3"]:
    """Resize images and map their values as a reference implementation does.

    Args:
      name: one of `PREPARATIONS`.
      images: [b, h, w, c] uint8, c = 1 (repeated) or 3; for patch, h and w at least 299.

    Returns:
      [b, 299, 299, 3] float32, about [-1, 1].

    Raises:
      ValueError: if the name is unknown or the images do not fit.
    """
    check_preparation(name, images.shape)
    x = jnp.asarray(images).astype(jnp.float32)
    if x.shape[-1] == 1:
        x = jnp.repeat(x, 3, axis=-1)
    return PREPARATIONS[name](x)


def check_preparation(name: str, shape: tuple[int, ...]) -> None:
    """Refuse an unknown name, or images that it cannot prepare, before anything is compiled.

    Args:
      name: of the preparation.
      shape: of the images, [b, h, w, c].

    Raises:
      ValueError: if the name is unknown or the shape does not fit.
    """
    if name not in PREPARATIONS:
        raise Refused(
            f"resize={name!r}, expected one of {sorted(PREPARATIONS)}; take the one that the "
            "figures you compare with were made by."
        )
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise Refused(
            f"images have shape {shape}, expected [b, h, w, c] with c = 1 or 3; convert them to "
            "grey or RGB, channels last."
        )
    if name == "patch" and min(shape[1:3]) < SIZE:
        raise Refused(
            f"images are {shape[1]} x {shape[2]} pixels, expected at least {SIZE} x {SIZE} for "
            "patches, which are cut and not resized; use another resize for small images."
        )


def _pytorch_fid(x: Array) -> Array:
    return _resized(x, "half_pixel") / 127.5 - 1.0


def _clean_fid(x: Array) -> Array:
    return (jnp.clip(_resized(x, "bicubic"), 0.0, 255.0) - 128.0) / 128.0


def _edm(x: Array) -> Array:
    return (_resized(x, "tensorflow1") - 128.0) / 128.0


def _patch(x: Array) -> Array:
    # Python's rounding, halves to even, is torchvision's.
    top, left = (round((side - SIZE) / 2) for side in x.shape[1:3])
    return (x[:, top : top + SIZE, left : left + SIZE] - 128.0) / 128.0


PREPARATIONS = {
    "pytorch_fid": _pytorch_fid,
    "clean_fid": _clean_fid,
    "edm": _edm,
    "patch": _patch,
}
"""Name -> [b, h, w, 3] float32 in 0..255 -> [b, 299, 299, 3]."""


def _resized(x: Float[Array, "b h w c"], kind: str) -> Float[Array, "b 299 299 c"]:
    rows, columns = (
        jnp.asarray(resize_matrix(kind, side, SIZE), jnp.float32) for side in x.shape[1:3]
    )
    highest = lax.Precision.HIGHEST  # the default rounds to bfloat16 or TF32 on accelerators
    x = jnp.einsum("pw,bhwc->bhpc", columns, x, precision=highest)
    return jnp.einsum("qh,bhpc->bqpc", rows, x, precision=highest)


@functools.cache
def resize_matrix(kind: str, size: int, new_size: int) -> Float64[np.ndarray, "new_size size"]:
    """Return the weights of every input pixel in every output pixel, along one axis.

    Args:
      kind: "half_pixel" (bilinear at (i + 1/2) size / new_size - 1/2), "tensorflow1" (bilinear
        at i size / new_size) or "bicubic" (Pillow's, antialiased).
      size: pixels of the input, >= 1.
      new_size: pixels of the output, >= 1.

    Returns:
      [new_size, size]; each row sums to 1.
    """
    if kind == "bicubic":
        return _bicubic_matrix(size, new_size)
    places = np.arange(new_size) * (size / new_size)
    if kind == "half_pixel":
        # In float32, as torch computes them: their rounding is part of the reference.
        half, scale = np.float32(0.5), np.float32(size) / np.float32(new_size)
        places = np.maximum((np.arange(new_size, dtype=np.float32) + half) * scale - half, 0)
        places = places.astype(np.float64)
    lower = np.minimum(np.floor(places).astype(int), size - 1)
    upper = np.minimum(lower + 1, size - 1)
    share = places - lower
    matrix = np.zeros((new_size, size))
    np.add.at(matrix, (np.arange(new_size), lower), 1.0 - share)
    np.add.at(matrix, (np.arange(new_size), upper), share)
    return matrix


def _bicubic_matrix(size: int, new_size: int) -> np.ndarray:
    """Return Pillow's weights: Keys's kernel, stretched by the scale when it shrinks."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    matrix = np.zeros((new_size, size))
    for i in range(new_size):
        centre = (i + 0.5) * scale
        # Pillow truncates after adding a half; both ends are then cut to the image.
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), size)
        pixels = np.arange(first, last)
        weights = _keys((pixels - centre + 0.5) / stretch)
        matrix[i, first:last] = weights / weights.sum()
    return matrix


def _keys(x: np.ndarray) -> np.ndarray:
    """Return Keys's cubic convolution kernel with a = -1/2, zero from 2 on."""
    x, a = np.abs(x), _BICUBIC
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
