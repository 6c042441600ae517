"""The transformer of a U-Net level: scanned layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.rules import REMAT
from dmd2_jax.networks.initialise import init_variables
from dmd2_jax.networks.lora import LoraConfig, combine, lora_init
from dmd2_jax.networks.sd_transformer import SpatialTransformer


@pytest.fixture(scope="module")
def deep():
    """A transformer of three blocks, its weights with adapters, and its inputs."""
    module = SpatialTransformer(heads=2, depth=3, groups=2, linear=True)
    random = np.random.default_rng(0)
    inputs = [random.normal(size=shape).astype(np.float32) for shape in [(2, 2, 2, 8), (2, 3, 12)]]
    params = init_variables(module, jax.random.key(0), *inputs)
    config = LoraConfig(2, 4.0, ("to_q", "net_2"))
    adapters = lora_init(jax.random.key(1), params, config)
    adapters = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), adapters
    )
    return module, combine(params, adapters, config), inputs


def value_and_gradient(module, variables, inputs):
    def loss(variables):
        return jnp.mean(jnp.square(module.apply(variables, *inputs)))

    return jax.jit(jax.value_and_grad(loss))(variables)


@pytest.mark.parametrize("remat", REMAT)
def test_scanned_layers_compute_the_same(deep, remat):
    module, variables, inputs = deep
    expected = value_and_gradient(module, variables, inputs)
    actual = value_and_gradient(module.clone(scan_layers=True, remat=remat), variables, inputs)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected
    )


def test_scanned_layers_are_one_block_in_the_program(deep):
    module, variables, inputs = deep

    def products(scan):
        apply = module.clone(scan_layers=scan).apply
        return str(jax.make_jaxpr(apply)(variables, *inputs)).count("dot_general")

    assert products(True) < 0.5 * products(False)


def test_layers_of_unequal_adapters_are_not_scanned(deep):
    module, variables, inputs = deep
    adapters = dict(variables["lora"])
    del adapters["transformer_blocks_1"]
    unequal = {**variables, "lora": adapters}
    expected = value_and_gradient(module, unequal, inputs)
    actual = value_and_gradient(module.clone(scan_layers=True), unequal, inputs)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
