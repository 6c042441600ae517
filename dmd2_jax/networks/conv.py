"""The 2-D convolution of every network, with gradients that are fast on CPU.

XLA's CPU backend has no fast path for the gradients of a convolution inside a loop (such as the
`lax.scan` over critic turns): they are 5 to 500 times slower there than outside. On CPU this file
therefore writes both gradients as ordinary convolutions or matrix products, whichever is faster
for the shape. Every other platform gets XLA's own gradients. The choice is made when a program
is lowered, not when it is traced, so compiling ahead of time for a TPU on a host that has only a
CPU takes the TPU's path.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.derivatives import with_gradient
from dmd2_jax.typing import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros around an image, ((top, bottom), (left, right)); a negative number crops."""

# Measured on 2 cores (AVX-512): where the kernel's gradient is faster as one matrix product than
# as a convolution. Numbers copied to make the product's two matrices, and batch size.
_MAX_COPIED = 4_000_000
_MAX_BATCH = 16


def conv2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    *,
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
) -> Float[Array, "b h2 w2 d"]:
    """Correlate images with a kernel, as neural networks mean "convolution".

    out[r, s, d] = sum_ijc kernel[i, j, c, d] x[stride r + i - top, stride s + j - left, c]

    Differentiable in reverse and in forward mode; see `with_gradient`.

    Args:
      x: [b, h, w, c] images, float32 or bfloat16 (products are then summed in float32).
      kernel: [kh, kw, c, d], same dtype.
      stride: step between outputs in both directions, >= 1.
      padding: zeros around the image, ((top, bottom), (left, right)), each >= 0.

    Returns:
      [b, h2, w2, d], h2 = (h + top + bottom - kh) // stride + 1 and w2 likewise, dtype of `x`.

    Raises:
      ValueError: if channels or dtypes differ, `stride` < 1, `padding` < 0 or no pixel is left.
    """
    _validate(x, kernel, stride, padding)
    return _with_gradients(stride, padding)(x, kernel)


def _validate(x: Array, kernel: Array, stride: int, padding: Padding) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise Refused(
            f"x {x.shape} and kernel {kernel.shape} do not fit, expected [b, h, w, c] and "
            "[kh, kw, c, d] with the same c; check the layout (NHWC, HWIO)."
        )
    if x.dtype != kernel.dtype:
        raise Refused(f"x is {x.dtype}, kernel {kernel.dtype}, expected one dtype; cast one.")
    if stride < 1 or min(min(padding[0]), min(padding[1])) < 0:
        raise Refused(f"stride={stride}, padding={padding}; expected stride >= 1, padding >= 0.")
    for size, taps, pad in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True):
        if size + sum(pad) < taps:
            raise Refused(
                f"image {x.shape[1:3]} with padding={padding} is smaller than the kernel "
                f"{kernel.shape[:2]}; pad more or use a smaller kernel."
            )


def _conv2d(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.cache
def _with_gradients(stride: int, padding: Padding) -> Callable[[Array, Array], Array]:
    """Return the convolution of one stride and padding, with the gradients of this file."""
    conv = functools.partial(_conv2d, stride=stride, padding=padding)

    def backward(x: Array, kernel: Array, out: Array, g: Array) -> tuple[Array, Array]:
        return lax.platform_dependent(
            x,
            kernel,
            g,
            cpu=functools.partial(_cpu_gradients, stride=stride, padding=padding),
            default=lambda x, kernel, g: jax.vjp(conv, x, kernel)[1](g),
        )

    def saving(x: Array, kernel: Array) -> tuple[Array]:
        return (conv(x, kernel),)

    return with_gradient(conv, saving=saving, plain=saving, backward=backward, num_arrays=2)


def _cpu_gradients(
    x: Array, kernel: Array, g: Array, *, stride: int, padding: Padding
) -> tuple[Array, Array]:
    def to_stride_one(x: Array, kernel: Array) -> tuple[Array, Array]:
        return _without_stride(x, kernel, stride, padding)[:2]

    (x1, kernel1), pull_back = jax.vjp(to_stride_one, x, kernel)
    if stride > 1:
        padding = ((0, 0), (0, 0))
    kh, kw = kernel1.shape[:2]
    (top, bottom), (left, right) = padding
    flipped = kernel1[::-1, ::-1].swapaxes(2, 3)
    full = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
    image_gradient = _conv2d(g, flipped, stride=1, padding=full)
    return pull_back((image_gradient, _kernel_gradient(x1, g, padding)))


def _without_stride(
    x: Array, kernel: Array, stride: int, padding: Padding
) -> tuple[Array, Array, Padding]:
    """Turn a strided convolution into one of stride 1 by moving pixels to channels.

    Each stride x stride patch becomes one pixel of stride^2 c channels, and the kernel, padded
    at its end to multiples of the stride, likewise.
    """
    if stride == 1:
        return x, kernel, padding
    kernel_pad, image_pad = [], []
    for size, taps, (low, high) in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True):
        outputs = (size + low + high - taps) // stride + 1
        blocks = -(-taps // stride)
        kernel_pad.append((0, blocks * stride - taps))
        image_pad.append((low, (outputs - 1 + blocks) * stride - size - low))
    kernel = _pad(kernel, (*kernel_pad, (0, 0), (0, 0)))
    x = _pad(x, ((0, 0), *image_pad, (0, 0)))
    b, h, w, c = x.shape
    kh, kw, _, d = kernel.shape
    x = x.reshape(b, h // stride, stride, w // stride, stride, c)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // stride, w // stride, -1)
    kernel = kernel.reshape(kh // stride, stride, kw // stride, stride, c, d)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(kh // stride, kw // stride, -1, d)
    return x, kernel, ((0, 0), (0, 0))


def _kernel_gradient(x: Array, g: Array, padding: Padding) -> Array:
    """Return d/d kernel of sum(g * conv(x, kernel)) with stride 1, in the faster of two ways."""
    (top, bottom), (left, right) = padding
    kh = x.shape[1] + top + bottom - g.shape[1] + 1
    kw = x.shape[2] + left + right - g.shape[2] + 1
    copied = kh * x.size // x.shape[1] * g.shape[1] + kw * g.size // g.shape[2] * x.shape[2]
    if (kh, kw) == (1, 1) or (copied <= _MAX_COPIED and x.shape[0] <= _MAX_BATCH):
        return _kernel_gradient_as_product(x, g, kh, kw, padding)
    # A convolution whose channels are the batch and whose kernel is g.
    gradient = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return gradient.transpose(1, 2, 0, 3)


def _kernel_gradient_as_product(x: Array, g: Array, kh: int, kw: int, padding: Padding) -> Array:
    """Return the kernel's gradient as one matrix product over all pixels.

        gradient[i, j, c, d] = sum_brs x[b, r + i - top, s, c] g[b, r, s - j + left, d]

    The usual matrix form (im2col) copies x once a tap, kh * kw times. Here the vertical taps lie
    beside each other on the channels of x and the horizontal ones on those of g, so x is copied
    kh times and g kw times.
    """
    (top, _), (left, _) = padding
    c, d = x.shape[3], g.shape[3]
    tall = _shifted(x, axis=1, taps=kh, low=top, length=g.shape[1])
    # Taps of g run backwards: entry j is tap kw - 1 - j.
    wide = _shifted(g, axis=2, taps=kw, low=kw - 1 - left, length=x.shape[2])
    # Behind the barrier the product reads both matrices as they lie; without it XLA fuses a slow
    # transposition into the concatenation.
    tall, wide = lax.optimization_barrier((tall.reshape(-1, kh * c), wide.reshape(-1, kw * d)))
    sum_type = jnp.promote_types(x.dtype, jnp.float32)
    gradient = lax.dot_general(
        tall, wide, (((0,), (0,)), ((), ())), preferred_element_type=sum_type
    )
    gradient = gradient.reshape(kh, c, kw, d)[:, :, ::-1].transpose(0, 2, 1, 3)
    return gradient.astype(x.dtype)


def _shifted(x: Array, *, axis: int, taps: int, low: int, length: int) -> Array:
    """Lay the windows x[-low + i : -low + i + length] of `axis` beside each other on channels."""
    windows = [_window(x, axis=axis, start=i - low, length=length) for i in range(taps)]
    return windows[0] if taps == 1 else jnp.concatenate(windows, axis=-1)


def _window(x: Array, *, axis: int, start: int, length: int) -> Array:
    """Return x[start : start + length] of `axis`, zero where `x` has no such entry."""
    config = [(0, 0)] * x.ndim
    config[axis] = (-start, start + length - x.shape[axis])
    return _pad(x, tuple(config))


def _pad(x: Array, config: tuple[tuple[int, int], ...]) -> Array:
    """Pad with zeros; negative numbers crop."""
    if all(pad == (0, 0) for pad in config):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) for low, high in config])
