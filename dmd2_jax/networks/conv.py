"""The 2-D convolution of every network, with gradients that are fast on CPU.

XLA's CPU backend has no fast path for the two gradients of a convolution inside a loop (such as
the `lax.scan` over critic turns): they are 5 to 500 times slower there than outside. On CPU this
file therefore writes the convolution and both gradients as one matrix product each. Every other
platform gets `lax.conv_general_dilated` and XLA's own gradients. The choice is made when a
program is lowered, not when it is traced, so compiling ahead of time for a TPU on a host that
has only a CPU takes the TPU's path.

The usual matrix form (im2col) copies the image once a tap, kh * kw times. Here the taps are
divided between the two sides: the horizontal ones lie beside each other on the input's channels,
the vertical ones on the output's, so the input is copied kw times and the output kh times:

    wide[r, s, (j, c)]  = x[r, s + j - left, c]
    tall[r, s, (i, d)]  = sum_jc wide[r, s, (j, c)] kernel[i, j, c, d]
    out[r, s, d]        = sum_i tall[r + i - top, s, (i, d)]
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dmd2_jax.typing import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros around an image, ((top, bottom), (left, right)); a negative number crops."""


def conv2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c d"],
    *,
    stride: int = 1,
    padding: Padding = ((0, 0), (0, 0)),
) -> Float[Array, "b h2 w2 d"]:
    """Correlate images with a kernel, as neural networks mean "convolution".

    out[r, s, d] = sum_ijc kernel[i, j, c, d] x[stride r + i - top, stride s + j - left, c]

    Differentiable once, in reverse mode; forward mode (`jax.jvp`) is not supported.

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
    return _conv2d(x, kernel, stride, padding)


def _validate(x: Array, kernel: Array, stride: int, padding: Padding) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"x {x.shape} and kernel {kernel.shape} do not fit, expected [b, h, w, c] and "
            "[kh, kw, c, d] with the same c; check the layout (NHWC, HWIO)."
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"x is {x.dtype}, kernel {kernel.dtype}, expected one dtype; cast one.")
    if stride < 1 or min(min(padding[0]), min(padding[1])) < 0:
        raise ValueError(f"stride={stride}, padding={padding}; expected stride >= 1, padding >= 0.")
    for size, taps, pad in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True):
        if size + sum(pad) < taps:
            raise ValueError(
                f"image {x.shape[1:3]} with padding={padding} is smaller than the kernel "
                f"{kernel.shape[:2]}; pad more or use a smaller kernel."
            )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_cpu_conv, stride=stride, padding=padding),
        default=functools.partial(_lax_conv, stride=stride, padding=padding),
    )


def _forward(x: Array, kernel: Array, stride: int, padding: Padding) -> tuple[Array, tuple]:
    return _conv2d(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: Padding, saved: tuple, g: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *saved,
        g,
        cpu=functools.partial(_cpu_gradients, stride=stride, padding=padding),
        default=functools.partial(_lax_gradients, stride=stride, padding=padding),
    )


_conv2d.defvjp(_forward, _backward)


def _lax_conv(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _lax_gradients(
    x: Array, kernel: Array, g: Array, *, stride: int, padding: Padding
) -> tuple[Array, Array]:
    conv = functools.partial(_lax_conv, stride=stride, padding=padding)
    return jax.vjp(conv, x, kernel)[1](g)


def _cpu_conv(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    x, kernel, padding = _without_stride(x, kernel, stride, padding)
    return _matmul_conv(x, kernel, padding)


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
    return pull_back((_matmul_conv(g, flipped, full), _matmul_kernel_gradient(x1, g, padding)))


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


def _matmul_conv(x: Array, kernel: Array, padding: Padding) -> Array:
    """Convolve with stride 1 by the matrix product of this file's docstring."""
    kh, kw, c, d = kernel.shape
    (top, bottom), (left, right) = padding
    height = x.shape[1] + top + bottom - kh + 1
    wide = _shifted(x, axis=2, taps=kw, low=left, length=x.shape[2] + left + right - kw + 1)
    matrix = kernel.transpose(1, 2, 0, 3).reshape(kw * c, kh * d)
    tall = lax.dot_general(wide, matrix, (((3,), (0,)), ((), ())), preferred_element_type=_SUM)
    out = sum(
        _window(tall[..., i * d : (i + 1) * d], axis=1, start=i - top, length=height)
        for i in range(kh)
    )
    return out.astype(x.dtype)


def _matmul_kernel_gradient(x: Array, g: Array, padding: Padding) -> Array:
    """Return d/d kernel of sum(g * conv(x, kernel)) with stride 1.

    gradient[i, j, c, d] = sum_brs x[b, r + i - top, s, c] g[b, r, s - j + left, d]
    """
    (top, bottom), (left, right) = padding
    c, d = x.shape[3], g.shape[3]
    kh = x.shape[1] + top + bottom - g.shape[1] + 1
    kw = x.shape[2] + left + right - g.shape[2] + 1
    tall = _shifted(x, axis=1, taps=kh, low=top, length=g.shape[1])
    # Taps of g run backwards: entry j is tap kw - 1 - j.
    wide = _shifted(g, axis=2, taps=kw, low=kw - 1 - left, length=x.shape[2])
    # Behind the barrier the product reads both matrices as they lie; without it XLA fuses a slow
    # transposition into the concatenation.
    tall, wide = lax.optimization_barrier(
        (tall.reshape(-1, tall.shape[3]), wide.reshape(-1, wide.shape[3]))
    )
    gradient = lax.dot_general(tall, wide, (((0,), (0,)), ((), ())), preferred_element_type=_SUM)
    gradient = gradient.reshape(kh, c, kw, d)[:, :, ::-1].transpose(0, 2, 1, 3)
    return gradient.astype(x.dtype)


_SUM = jnp.float32
"""The dtype of sums over channels and pixels."""


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
