import jax.numpy as jnp
import pytest

from dmd2_jax.typing import expand


def test_expand_appends_singleton_axes():
    scaled = expand(jnp.array([1.0, 2.0]), jnp.ones((2, 3, 4))) * jnp.ones((2, 3, 4))
    assert expand(jnp.array([1.0, 2.0]), jnp.ones((2, 3, 4))).shape == (2, 1, 1)
    assert scaled[0].max() == 1.0
    assert scaled[1].min() == 2.0


@pytest.mark.parametrize("shape", [(), (1,), (3, 1)])
def test_expand_refuses_what_is_not_one_number_a_sample(shape):
    with pytest.raises(ValueError, match=r"expected \[b\] = \(3,\)"):
        expand(jnp.ones(shape), jnp.ones((3, 2)))
