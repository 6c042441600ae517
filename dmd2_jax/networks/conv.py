"""2-D convolution in NHWC / HWIO layout."""

import jax

from dmd2_jax.typing import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]


def conv2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    *,
    stride: int = 1,
    padding: Padding,
) -> Float[Array, "b h2 w2 d"]:
    """Cross-correlate `x` with `kernel`.

    Args:
      x: [b, h, w, c].
      kernel: [kh, kw, c, d].
      stride: step in both directions.
      padding: zeros added ((top, bottom), (left, right)).

    Returns:
      [b, h2, w2, d].
    """
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
