import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks import layers
from dmd2_jax.networks.initialise import init_variables
from dmd2_jax.networks.layers import Embedding, LayerNorm, Linear
from tests.networks import reference


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size, stride, padding", [(3, 1, 1), (4, 2, 1), (1, 1, 0), (4, 4, 0)])
def test_conv_equals_definition(size, stride, padding):
    x = normal(2, 8, 8, 3)
    conv = layers.Conv(5, size, stride, padding)
    variables = conv.init(jax.random.key(0), x)
    layer = variables["params"]
    expected = reference.conv(x, layer["kernel"], layer["bias"], stride, padding)
    np.testing.assert_allclose(conv.apply(variables, x), expected, atol=2e-6)


def test_linear_equals_product():
    x = normal(4, 3)
    linear = layers.Linear(2)
    variables = linear.init(jax.random.key(0), x)
    expected = x @ variables["params"]["kernel"] + variables["params"]["bias"]
    np.testing.assert_allclose(linear.apply(variables, x), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 4, 4, 12), (3, 12)])
def test_group_norm_equals_definition(shape):
    x, scale, bias = normal(*shape) * 3 + 100, normal(12, seed=1), normal(12, seed=2)
    actual = layers.group_norm(jnp.asarray(x), scale, bias, groups=3, eps=1e-5)
    np.testing.assert_allclose(actual, reference.group_norm(x, scale, bias, 3), atol=3e-5)


def test_group_norm_keeps_statistics_float32_in_bfloat16():
    # Summed in bfloat16, 4096 ones stop at 256; in float32 the mean is exact.
    x = jnp.ones((1, 64, 64, 4), jnp.bfloat16).at[:, ::2].set(3.0)
    y = layers.group_norm(x, jnp.ones(4), jnp.zeros(4), groups=1, eps=0.0)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.unique(np.asarray(y, np.float32)), [-1.0, 1.0])


@pytest.mark.parametrize("channels, groups", [(4, 1), (8, 2), (96, 24), (128, 32), (768, 32)])
def test_num_groups_is_edms(channels, groups):
    assert layers.num_groups(channels) == groups


def test_num_groups_refuses_channels_it_does_not_divide():
    with pytest.raises(ValueError, match=r"channels=130 .*=32 groups"):
        layers.num_groups(130)


def test_positional_embedding_by_hand():
    actual = layers.positional_embedding(jnp.array([2.0]), 4, endpoint=False)
    frequencies = np.array([1.0, 0.01])
    expected = np.concatenate([np.cos(2 * frequencies), np.sin(2 * frequencies)])
    np.testing.assert_allclose(actual[0], expected, rtol=1e-6)


def test_positional_embedding_endpoint_reaches_max_period():
    actual = layers.positional_embedding(jnp.array([2.0]), 4, endpoint=True)
    np.testing.assert_allclose(actual[0, 3], np.sin(2e-4), rtol=1e-5)


def test_fourier_embedding_by_hand():
    variables = {"constants": {"freqs": jnp.array([0.25, 3.0])}}
    actual = layers.FourierEmbedding(4).apply(variables, jnp.array([0.5]))
    angles = 2 * np.pi * 0.5 * np.array([0.25, 3.0])
    expected = np.concatenate([np.cos(angles), np.sin(angles)])
    np.testing.assert_allclose(actual[0], expected, atol=1e-6)


def test_fourier_embedding_gives_its_frequencies_no_gradient():
    variables = {"constants": {"freqs": jnp.array([0.25, 3.0])}}
    gradient = jax.grad(lambda v: layers.FourierEmbedding(4).apply(v, jnp.array([0.5])).sum())(
        variables
    )
    np.testing.assert_array_equal(gradient["constants"]["freqs"], [0.0, 0.0])


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 3, 4), (1, 2, 3, 3, 2, 5)])
def test_downsample_equals_definition(taps):
    x = normal(2, 8, 6, 3)
    actual = layers.downsample(x, taps)
    np.testing.assert_allclose(actual, reference.downsample(x, taps), atol=1e-6)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 3, 4), (1, 2, 3, 3, 2, 5)])
def test_upsample_equals_definition(taps):
    x = normal(2, 4, 3, 3)
    actual = layers.upsample(jnp.asarray(x), taps)
    np.testing.assert_allclose(actual, reference.upsample(x, taps), atol=2e-6)


@pytest.mark.parametrize("taps", [(1, 2, 1), ()])
def test_downsample_refuses_an_odd_filter(taps):
    with pytest.raises(ValueError, match="an even number"):
        layers.downsample(jnp.ones((1, 4, 4, 1)), taps)


@pytest.mark.parametrize(
    "init, std",
    [
        (layers.FAN_IN, 1 / np.sqrt(3 * 50)),
        (layers.Init(2.0, fan="both"), 2 * np.sqrt(2 / (50 + 80))),
        (layers.Init(fan="none", distribution="normal"), 1.0),
        (layers.ZEROS, 0.0),
    ],
)
def test_init_has_the_standard_deviation_of_its_formula(init, std):
    values = init(jax.random.key(0), (50, 80), (50, 80))
    np.testing.assert_allclose(values.std(), std, rtol=0.05)
    np.testing.assert_allclose(values.mean(), 0.0, atol=0.06 * std)


def test_init_counts_the_window_in_the_fans():
    assert layers.FAN_IN.scale((3, 3, 4, 7)) == pytest.approx(1 / 6)
    assert layers.Init(fan="both").scale((3, 3, 4, 8)) == pytest.approx(np.sqrt(6 / 108))


def test_layer_norm_has_mean_0_and_variance_1():
    x = jnp.asarray([[1.0, 2.0, 3.0, 6.0]])
    actual = LayerNorm(eps=0.0).apply({"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}, x)
    np.testing.assert_allclose(actual, (x - 3) / math.sqrt(3.5), rtol=1e-6)


def test_embedding_outside_its_table_is_nan():
    table = {"params": {"embedding": jnp.arange(6.0).reshape(3, 2)}}
    actual = Embedding(3, 2).apply(table, jnp.asarray([2, 3]))
    np.testing.assert_array_equal(actual, [[4.0, 5.0], [np.nan, np.nan]])


def test_embedding_starts_with_its_scale():
    index = jax.ShapeDtypeStruct((1,), jnp.int32)
    table = init_variables(Embedding(200, 50, scale=0.5), jax.random.key(0), index)
    values = table["params"]["embedding"]
    assert values.shape == (200, 50)
    assert float(values.std()) == pytest.approx(0.5, rel=0.03)


def test_a_given_variable_is_not_made_again_and_has_the_layers_shape() -> None:
    asked = []

    def init(key: jax.Array, *shape: tuple[int, ...]) -> jax.Array:
        asked.append(shape)
        return jnp.ones(shape[0])

    layer, x = Linear(3, kernel_init=init), jnp.ones((1, 2))
    params = layer.init(jax.random.key(0), x)
    asked.clear()
    assert layer.apply(params, x).shape == (1, 3)
    assert not asked
    with pytest.raises(Refused, match=r"'kernel' of .* has shape \(2, 3\), expected \(5, 3\)"):
        layer.apply(params, jnp.ones((1, 5)))
