import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.networks import attention
from tests.networks import reference


def heads(dtype=jnp.float32):
    shapes = ((2, 5, 3, 4), (2, 7, 3, 4), (2, 7, 3, 4), (2, 5, 3, 4))
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


def plain(q, k, v):
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)


@pytest.mark.parametrize("large_head", [1, 1 << 18])  # one head at a time, all at once
def test_attention_equals_definition(monkeypatch, large_head):
    monkeypatch.setattr(attention, "_LARGE_HEAD", large_head)
    q, k, v, _ = heads()
    np.testing.assert_allclose(
        attention.attention(q, k, v), reference.attention(q, k, v), atol=1e-6
    )


def test_attention_of_lengths_reads_the_first_keys_alone():
    q, k, v, _ = heads()
    actual = attention.attention(q, k, v, jnp.array([7, 3]))
    for row, length in enumerate((7, 3)):
        one = [x[row : row + 1] for x in (q, k[:, :length], v[:, :length])]
        np.testing.assert_allclose(actual[row], reference.attention(*one)[0], atol=1e-6)


@pytest.mark.parametrize("large_head", [1, 1 << 18])
def test_attention_gradients_equal_the_plain_formulas(monkeypatch, large_head):
    monkeypatch.setattr(attention, "_LARGE_HEAD", large_head)
    q, k, v, g = heads()
    expected = jax.vjp(plain, q, k, v)[1](g)
    for ours, theirs in zip(jax.vjp(attention.attention, q, k, v)[1](g), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_attention_elsewhere_has_the_plain_gradients():
    q, k, v, g = (x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3]) for x in heads())
    out, log_sum = attention._one_forward(q, k, v)
    ours = attention._one_backward(q, k, v, out, log_sum, g)
    for a, b in zip(ours, attention._plain_backward(q, k, v, out, log_sum, g), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_attention_keeps_bfloat16():
    q, k, v, _ = heads(jnp.bfloat16)
    out = attention.attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    exact = plain(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)
