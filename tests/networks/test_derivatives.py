import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dmd2_jax.networks.attention import attention
from dmd2_jax.networks.conv import conv2d
from dmd2_jax.networks.derivatives import with_gradient


def plain_attention(q, k, v):
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)


def plain_conv(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=numbers)


def our_conv(x, kernel):
    return conv2d(x, kernel, stride=2, padding=((1, 1), (1, 1)))


def draw(*shapes):
    keys = jax.random.split(jax.random.key(1), len(shapes))
    return tuple(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))


FUNCTIONS = {
    "attention": (attention, plain_attention, draw((2, 5, 3, 4), (2, 7, 3, 4), (2, 7, 3, 4))),
    "conv2d": (our_conv, plain_conv, draw((2, 7, 6, 3), (3, 3, 3, 4))),
}


def forward(function, arrays):
    return jax.jvp(function, arrays, jax.tree.map(jnp.cos, arrays))


def mean_flow(function, arrays):
    """Differentiate a loss that holds a forward derivative, as MeanFlow's and sCM's do."""

    def loss(*arrays):
        u, slope = forward(function, arrays)
        return jnp.sum((u - lax.stop_gradient(jnp.sin(slope))) ** 2)

    return jax.grad(loss, tuple(range(len(arrays))))(*arrays)


def through_the_slope(function, arrays):
    return jax.grad(lambda *arrays: jnp.sum(forward(function, arrays)[1] ** 2))(*arrays)


def forward_over_reverse(function, arrays):
    def gradient(*arrays):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))))(*arrays)

    return jax.jvp(gradient, arrays, jax.tree.map(jnp.cos, arrays))


def over_samples(function, arrays):
    def loss(*arrays):
        return jnp.sum(jax.vmap(function, (0, *[None] * (len(arrays) - 1)))(*arrays) ** 2)

    return jax.grad(loss, tuple(range(len(arrays))))(jnp.stack([arrays[0]] * 2), *arrays[1:])


def scanned(function, arrays):
    def body(total, x):
        return total + jax.checkpoint(function)(x, *arrays[1:]), None

    def loss(x):
        start = jnp.zeros_like(function(x, *arrays[1:]))
        return jnp.sum(lax.scan(body, start, jnp.stack([x, 2 * x]))[0] ** 2)

    return jax.jvp(loss, arrays[:1], arrays[:1]), jax.grad(loss)(arrays[0])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "derivative",
    [forward, mean_flow, through_the_slope, forward_over_reverse, over_samples, scanned],
)
def test_every_derivative_equals_the_plain_formulas(derivative, name):
    ours, plain, arrays = FUNCTIONS[name]
    # Jitted, as a cycle is: what reverse and forward mode leave must lower.
    found = jax.jit(lambda *arrays: derivative(ours, arrays))(*arrays)
    expected = jax.jit(lambda *arrays: derivative(plain, arrays))(*arrays)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * float(jnp.abs(b).max() + 1))


def test_reverse_mode_runs_the_given_gradient_and_forward_mode_the_plain_one():
    marked = with_gradient(
        lambda x: x**2,
        saving=lambda x: (x**2, jnp.full_like(x, 7)),
        plain=lambda x: (x**2, jnp.full_like(x, 7)),
        backward=lambda x, y, seven, g: (seven * g,),
        num_arrays=1,
    )
    assert jax.grad(marked)(3.0) == 7
    assert jax.jvp(marked, (3.0,), (1.0,)) == (9, 6)
