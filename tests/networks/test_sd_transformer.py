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
from dmd2_jax.runtime.gathering import gather, gathering
from dmd2_jax.runtime.sharding import make_mesh, tree_shardings


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


@pytest.fixture(scope="module")
def apart():
    """Two blocks in a loop, their weights apart on eight devices, and their inputs."""
    module = SpatialTransformer(heads=2, depth=2, groups=2, linear=True, scan_layers=True)
    random = np.random.default_rng(0)
    inputs = [random.normal(size=shape).astype(np.float32) for shape in [(8, 2, 2, 64), (8, 3, 64)]]
    params = init_variables(module, jax.random.key(0), *inputs)
    params = combine(params, lora_init(jax.random.key(1), params, LORA), LORA)
    mesh = make_mesh({"fsdp": 8})
    return module, jax.device_put(params, tree_shardings(params, mesh)), inputs, mesh


LORA = LoraConfig(64, 64.0, ("to_q",))
STACK = "f32[2,64,512]"  # of the feed-forward kernels, whole; a part is [2,64,64]


def by_layer(module, inputs, mesh):
    def loss(params):
        with gathering(mesh):
            return jnp.mean(jnp.square(module.apply(params, *inputs)))

    return jax.value_and_grad(loss)


@pytest.mark.parametrize("remat", REMAT)
def test_weights_of_a_loop_come_together_a_layer_at_a_time(apart, remat):
    module, params, inputs, mesh = apart
    # Compiled and not run: CPUs' runtime may not end, see `brought_together`.
    compiled = jax.jit(by_layer(module.clone(remat=remat), inputs, mesh)).lower(params).compile()
    assert "all-gather" in compiled.as_text() and STACK not in compiled.as_text()

    def stays(new, old):
        return new.is_equivalent_to(old.sharding, old.ndim)

    assert all(jax.tree.leaves(jax.tree.map(stays, compiled.output_shardings[1], params)))


def test_weights_gathered_before_a_loop_are_whole_in_it(apart):
    module, params, inputs, mesh = apart

    def images(params):
        return module.apply(gather(params, mesh), *inputs)

    assert STACK in jax.jit(images).lower(params).compile().as_text()


def test_weights_that_come_together_by_layer_give_the_same_gradients(apart):
    module, params, inputs, mesh = apart
    plain = module.clone(scan_layers=False)
    expected = value_and_gradient(plain, jax.device_get(params), inputs)
    with jax.disable_jit():
        actual = by_layer(module, inputs, mesh)(params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected
    )
