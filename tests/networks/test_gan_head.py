import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.networks.gan_head import (
    GanHead,
    VectorHead,
    discriminator,
    head_groups,
    head_of_any_shape,
)
from tests.networks import reference


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_gan_head_equals_the_original_sequence_of_layers():
    features = normal(3, 8, 8, 6)
    head = GanHead(96)
    params = head.init(jax.random.key(0), features)["params"]
    assert sorted(params) == ["0", "1", "3", "4", "6"]

    def conv(x, place, stride, padding):
        return reference.conv(x, *(params[place][k] for k in ("kernel", "bias")), stride, padding)

    def norm(x, place):
        return reference.group_norm(x, *(params[place][k] for k in ("scale", "bias")), groups=32)

    x = reference.silu(norm(conv(features, "0", 2, 1), "1"))
    assert params["3"]["kernel"].shape == (4, 4, 96, 96)
    x = reference.silu(norm(conv(x, "3", 4, 0), "4"))
    expected = conv(x, "6", 1, 0)[:, 0, 0, 0]
    actual = head.apply({"params": params}, features)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "size, stages",
    [((32, 32), 3), ((8, 8), 1), ((4, 4), 0), ((2, 2), 0), ((1, 1), 0), ((7, 12), 1)],
)
def test_gan_head_adapts_to_the_size_of_the_feature_map(size, stages):
    head = GanHead(8)
    features = jax.ShapeDtypeStruct((2, *size, 5), jnp.float32)
    params = jax.eval_shape(head.init, jax.random.key(0), features)
    assert len(params["params"]) == 2 * stages + 3
    assert jax.eval_shape(head.apply, params, features).shape == (2,)


@pytest.mark.parametrize(
    "hidden, groups", [(768, 32), (128, 32), (96, 32), (64, 16), (32, 8), (6, 2), (7, 1), (2, 1)]
)
def test_head_groups_leave_three_channels_a_group(hidden, groups):
    assert head_groups(hidden) == groups


@pytest.mark.parametrize("module, shape", [(GanHead(16), (4, 4, 4, 6)), (VectorHead(16), (4, 6))])
def test_head_logit_depends_on_its_own_sample_only(module, shape):
    head = discriminator(module)
    features = jnp.asarray(normal(*shape))
    params = head.init(jax.random.key(0), (features,))
    gradient = jax.grad(lambda f: head.logits(params, (f,))[1])(features)
    touched = np.abs(np.asarray(gradient)).reshape(len(features), -1).max(1) > 0
    np.testing.assert_array_equal(touched, [False, True, False, False])


def test_discriminator_averages_one_head_per_feature():
    features = (jnp.asarray(normal(3, 5)), jnp.asarray(normal(3, 2, seed=1)))
    shapes = tuple(jax.ShapeDtypeStruct(f.shape, f.dtype) for f in features)
    head = discriminator(VectorHead(4))
    params = head.init(jax.random.key(0), shapes)
    each = [
        VectorHead(4).apply({"params": params[f"head_{i}"]}, feature)
        for i, feature in enumerate(features)
    ]
    np.testing.assert_allclose(head.logits(params, features), (each[0] + each[1]) / 2, rtol=1e-6)


def test_discriminator_gives_float32_logits_of_bfloat16_features():
    features = (jnp.asarray(normal(2, 5), jnp.bfloat16),)
    head = discriminator(VectorHead(4))
    logits = head.logits(head.init(jax.random.key(0), features), features)
    assert logits.dtype == jnp.float32 and logits.shape == (2,)


def test_discriminator_refuses_another_number_of_features():
    features = (jnp.asarray(normal(2, 5)),)
    head = discriminator(VectorHead(4))
    params = head.init(jax.random.key(0), features)
    with pytest.raises(ValueError, match="got 2 feature arrays for a discriminator of 1 heads"):
        head.logits(params, features * 2)


def test_head_of_any_shape_is_the_mean_of_a_gan_heads_logits():
    head, square = head_of_any_shape(4, 8), jnp.ones((2, 4, 4, 3))
    wide = jax.random.normal(jax.random.key(1), (2, 4, 7, 3))
    params = head.init(jax.random.key(0), wide)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == jax.tree.map(jnp.shape, jax.eval_shape(head.init, jax.random.key(0), square))
    np.testing.assert_allclose(
        head.apply(params, square), GanHead(8).apply(params, square), rtol=1e-5
    )
    assert head.apply(params, wide).shape == (2,)
    assert (head.num_stages, head.last) == (0, 4)
    assert (head_of_any_shape(27, 8).num_stages, head_of_any_shape(27, 8).last) == (3, 3)
