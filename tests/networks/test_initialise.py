"""Weights drawn without running the network: shapes, distributions, and the key alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.networks import layers
from dmd2_jax.networks.initialise import init_variables
from tests.families.edm.test_unet import NETWORKS, inputs, network, perturbed

__all__ = ["network"]  # a fixture


def test_init_variables_has_the_shapes_of_module_init(network):
    module, args = network(), inputs()
    expected = jax.eval_shape(module.init, jax.random.key(0), *args)
    actual = init_variables(module, jax.random.key(0), *args)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, e: np.testing.assert_equal((a.shape, a.dtype), (e.shape, e.dtype)),
        actual,
        expected,
    )


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Conv(40), (1, 5, 5, 20)),
        (
            layers.Conv(40, kernel_init=layers.Init(0.1, "both"), bias_init=layers.ZEROS),
            (1, 5, 5, 20),
        ),
        (layers.Linear(50, kernel_init=layers.Init(fan="none", distribution="normal")), (1, 60)),
        (layers.GroupNorm(2), (1, 8)),
        (layers.LayerNorm(), (1, 8)),
        (layers.FourierEmbedding(2000), (1,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_init_variables_has_the_distribution_of_the_layers_init(layer, shape):
    x = jnp.ones(shape)
    expected = jax.tree.leaves(layer.init(jax.random.key(0), x))
    actual = jax.tree.leaves(init_variables(layer, jax.random.key(0), x))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a.std(), e.std(), rtol=0.3 if a.size < 100 else 0.06)
        np.testing.assert_allclose(a.mean(), e.mean(), atol=0.6 * float(e.std()))
        assert float(jnp.abs(a).max()) <= 1.3 * float(jnp.abs(e).max())


def test_init_variables_refuses_other_layers():
    with pytest.raises(ValueError, match="'bias' belongs to a Dense"):
        init_variables(nn.Dense(2), jax.random.key(0), jnp.ones((1, 3)))


def test_init_variables_is_a_function_of_the_key():
    module, args = NETWORKS["adm"](), inputs()
    first, again, other = (
        init_variables(module, jax.random.key(seed), *args)["params"]["map_layer0"]["kernel"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_init_variables_can_be_traced():
    module, args = NETWORKS["adm"](), inputs()
    traced = jax.eval_shape(lambda key: init_variables(module, key, *args), jax.random.key(0))
    assert jax.tree.structure(traced) == jax.tree.structure(perturbed(module))
