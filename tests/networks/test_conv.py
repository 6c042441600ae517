"""conv2d equals XLA's convolution, and its gradients XLA's gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.networks import conv
from dmd2_jax.networks.conv import conv2d

NONE = ((0, 0), (0, 0))
ONE = ((1, 1), (1, 1))
UNEVEN = ((2, 0), (0, 3))
WIDE = ((4, 5), (0, 1))  # wider than the kernel: gradients have to crop


def xla_conv(x, kernel, *, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arrays(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]


def relative(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def value_and_gradients(convolve, x, kernel):
    y = convolve(x, kernel)
    (weights,) = arrays(y.shape, seed=1)
    return y, *jax.grad(lambda *args: (convolve(*args) * weights).sum(), (0, 1))(x, kernel)


@pytest.mark.parametrize("padding", [NONE, ONE, UNEVEN, WIDE])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 4), (3, 1)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_conv2d_equals_xla_with_gradients(stride, size, padding):
    x, kernel = arrays((2, 7, 9, 3), (*size, 3, 5))
    settings = {"stride": stride, "padding": padding}
    ours = value_and_gradients(functools.partial(conv2d, **settings), x, kernel)
    xlas = value_and_gradients(functools.partial(xla_conv, **settings), x, kernel)
    for a, b in zip(ours, xlas, strict=True):
        assert a.shape == b.shape
        assert relative(a, b) <= 1e-6


@pytest.mark.parametrize(("batch", "channels"), [(2, 4), (20, 4)])
def test_conv2d_kernel_gradient_is_the_same_both_ways(batch, channels):
    x, g = arrays((batch, 8, 6, channels), (batch, 8, 6, 5))
    product = conv._kernel_gradient_as_product(x, g, 3, 3, ONE)
    expected = jax.vjp(
        functools.partial(xla_conv, x, stride=1, padding=ONE), jnp.zeros((3, 3, channels, 5))
    )[1](g)[0]
    assert relative(product, expected) <= 1e-6
    assert relative(conv._kernel_gradient(x, g, ONE), expected) <= 1e-6


def test_conv2d_equals_xla_inside_a_scan():
    x, kernel = arrays((3, 2, 8, 8, 4), (3, 3, 4, 4))

    def losses(convolve):
        def body(kernel, x):
            grad = jax.grad(lambda k: (convolve(x, k, stride=2, padding=ONE) ** 2).mean())(kernel)
            return kernel - 0.1 * grad, None

        return jax.jit(lambda: jax.lax.scan(body, kernel, x)[0])()

    assert relative(losses(conv2d), losses(xla_conv)) <= 1e-6


def test_conv2d_keeps_bfloat16():
    x, kernel = arrays((2, 8, 8, 4), (3, 3, 4, 4))
    low = (x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    convolve = functools.partial(conv2d, stride=1, padding=ONE)
    exact = value_and_gradients(convolve, *(a.astype(jnp.float32) for a in low))
    rounding = 2.0**-8  # one rounding of a float32 sum
    for a, b in zip(value_and_gradients(convolve, *low), exact, strict=True):
        assert a.dtype == jnp.bfloat16
        assert relative(a.astype(jnp.float32), b) <= rounding


def test_conv2d_gradients_are_xlas_when_lowered_for_tpu():
    x, kernel = arrays((2, 8, 8, 4), (3, 3, 4, 4))

    def lowered(convolve, platform):
        grad = jax.grad(lambda *a: convolve(*a, stride=2, padding=ONE).sum(), (0, 1))
        text = jax.jit(grad).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        return sorted(re.findall(r"stablehlo\.(?:convolution|dot_general)", text))

    assert lowered(conv2d, "tpu") == lowered(xla_conv, "tpu")
    assert lowered(conv2d, "cpu") != lowered(xla_conv, "cpu")


@pytest.mark.parametrize(
    ("x", "kernel", "settings", "message"),
    [
        ((2, 8, 8, 4), (3, 3, 5, 4), {}, "do not fit"),
        ((2, 8, 8, 4), (3, 3, 4), {}, "do not fit"),
        ((2, 8, 8, 4), (3, 3, 4, 4), {"stride": 0}, "stride=0"),
        ((2, 8, 8, 4), (3, 3, 4, 4), {"padding": ((-1, 0), (0, 0))}, "padding >= 0"),
        ((2, 2, 8, 4), (3, 3, 4, 4), {}, "smaller than the kernel"),
    ],
)
def test_conv2d_refuses_what_does_not_fit(x, kernel, settings, message):
    with pytest.raises(ValueError, match=message):
        conv2d(jnp.zeros(x), jnp.zeros(kernel), **settings)


def test_conv2d_refuses_mixed_dtypes():
    with pytest.raises(ValueError, match="expected one dtype"):
        conv2d(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 2), jnp.bfloat16))
