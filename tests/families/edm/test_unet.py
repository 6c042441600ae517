"""Properties that both U-Nets share, on networks of a few thousand parameters."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from dmd2_jax.config.rules import REMAT
from dmd2_jax.families.edm.adm_unet import AdmUNet
from dmd2_jax.families.edm.song_unet import SongUNet
from dmd2_jax.families.edm.unet_block import BlockInits, UNetBlock
from dmd2_jax.networks import layers
from dmd2_jax.networks.initialise import init_variables

SMALL = {
    "resolution": 8,
    "image_channels": 1,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attention_resolutions": (4,),
}
INITS = BlockInits(layers.FAN_IN, layers.FAN_IN, layers.FAN_IN, layers.FAN_IN)
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
    "channel_mult_noise": 2,
}
DTYPES = (jnp.float32, jnp.bfloat16)
BLOCKS = 10  # residual blocks of each network below: 3 in the encoder, 7 in the decoder
NETWORKS = {
    "adm": functools.partial(AdmUNet, **SMALL),
    "ddpmpp": functools.partial(SongUNet, **SMALL),
    "ncsnpp": functools.partial(SongUNet, **SMALL, **NCSNPP),
}


def inputs(batch=2, resolution=8, channels=1, label_dim=3):
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, resolution, resolution, channels)).astype(np.float32)
    noise_labels = random.standard_normal(batch).astype(np.float32)
    labels = np.eye(label_dim, dtype=np.float32)[np.arange(batch) % label_dim]
    return jnp.asarray(x), jnp.asarray(noise_labels), jnp.asarray(labels)


def perturbed(module, resolution=8):
    """Variables in which no layer is trivial, as the zero initial ones would be."""
    variables = init_variables(module, jax.random.key(0), *inputs(resolution=resolution))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + 0.1 * random.standard_normal(p.shape, np.float32), variables)


def count(jaxpr, primitive):
    """Count a primitive in a jaxpr and all that it calls."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == primitive
        for inner in jaxprs_in_params(equation.params):
            total += count(inner, primitive)
    return total


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]


@functools.cache
def gradients(remat):
    """The gradient of a loss behind two calls of a network, and the program's temporary bytes."""
    shape = {**SMALL, "channel_mult": (1,), "num_blocks": 2}
    x, noise_labels, labels = inputs(batch=16)
    params = perturbed(AdmUNet(**shape))
    apply = AdmUNet(**shape, remat=remat).apply

    def loss(params):
        again = apply(params, x, noise_labels, labels)
        return jnp.mean(apply(params, again, noise_labels, labels) ** 2)

    # XLA's CPU backend takes the barriers away that keep a recomputation late (in its pass
    # cse_barrier_expander), computes again and keeps the first results all the same.
    options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    program = jax.jit(jax.grad(loss)).lower(params).compile(compiler_options=options)
    return program(params), program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", ["block", "full"])
def test_remat_gives_the_same_gradients(remat):
    got, expected = gradients(remat)[0], gradients("none")[0]
    difference = jax.tree.map(jnp.subtract, got, expected)
    assert optax.tree.norm(difference) <= 1e-6 * optax.tree.norm(expected)


def test_remat_takes_less_memory():
    none, block, full = (gradients(remat)[1] for remat in REMAT)
    assert block < none / 2
    assert full < 0.9 * block  # one call's blocks' inputs instead of two calls'


@pytest.mark.parametrize(
    ("remat", "number"), [("none", 0), ("block", BLOCKS), ("full", BLOCKS + 1)]
)
@pytest.mark.parametrize("method", ["__call__", "call_with_bottleneck"])
def test_remat_recomputes_blocks(network, remat, number, method):
    args = inputs()
    params = jax.eval_shape(network().init, jax.random.key(0), *args)
    apply = functools.partial(network(remat=remat).apply, method=method)
    jaxpr = jax.make_jaxpr(apply)(params, *args).jaxpr
    assert count(jaxpr, "remat2") + count(jaxpr, "checkpoint") == number


def test_remat_full_recomputes_the_bottleneck(network):
    args = inputs()
    params = jax.eval_shape(network().init, jax.random.key(0), *args)
    apply = functools.partial(network(remat="full").apply, method="bottleneck")
    names = [equation.primitive.name for equation in jax.make_jaxpr(apply)(params, *args).eqns]
    assert names in (["remat2"], ["checkpoint"])


def test_bfloat16_is_close_to_float32(network):
    shape = {"resolution": 4, "channel_mult": (1,)}
    args = inputs(resolution=4)
    params = perturbed(network(**shape), resolution=4)

    @jax.jit
    def both(params):
        return [network(**shape, dtype=dtype).apply(params, *args) for dtype in DTYPES]

    expected, actual = both(params)
    assert actual.dtype == jnp.float32
    error = jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected)
    assert 1e-5 < error < 3e-2  # bfloat16 rounds at 4e-3


def test_bottleneck_is_that_of_the_whole_pass_without_its_decoder(network):
    module, args = network(), inputs()
    params = perturbed(module)
    _, expected = module.apply(params, *args, method="call_with_bottleneck")
    alone = functools.partial(module.apply, method="bottleneck")
    np.testing.assert_allclose(alone(params, *args), expected, rtol=1e-5, atol=1e-6)
    decoder = [name for name in params["params"] if name.startswith(("dec_", "out_"))]
    shortened = {
        **params,
        "params": {k: v for k, v in params["params"].items() if k not in decoder},
    }
    jaxpr = jax.make_jaxpr(alone)(shortened, *args)  # would raise if a decoder layer were visited
    assert jaxpr.out_avals[0].shape == expected.shape == (2, 4, 4, 16)


def test_features_of_levels_are_the_encoders_last_of_each_side(network):
    module, args = network(feature_resolutions=(4, 8)), inputs()
    params = perturbed(module)
    raw, found = module.apply(params, *args, method="call_with_features")
    expected, bottleneck = module.apply(params, *args, method="call_with_bottleneck")
    np.testing.assert_array_equal(raw, expected)
    np.testing.assert_array_equal(found[0], bottleneck)
    assert [feature.shape[1:3] for feature in found] == [(4, 4), (8, 8)]
    alone = module.apply(params, *args, method="encoder_features")
    for one, other in zip(alone, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_missing_label_equals_zero_label(network):
    module, (x, noise_labels, labels) = network(), inputs()
    params = perturbed(module)
    np.testing.assert_allclose(
        module.apply(params, x, noise_labels, None),
        module.apply(params, x, noise_labels, jnp.zeros_like(labels)),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"label_dim": 0},
        {"channel_mult": (1, 1, 3), "attention_resolutions": ()},
        {"channel_mult": (2,), "image_channels": 3},
        {"resolution": 4, "num_blocks": 2, "augment_dim": 9},
    ],
)
def test_call_returns_an_image_for_any_shape_of_network(network, changes):
    module = network(**changes)
    size, channels = module.resolution, module.image_channels
    x, noise_labels, labels = inputs(resolution=size, channels=channels)
    labels = labels if module.label_dim else None
    variables = jax.eval_shape(module.init, jax.random.key(0), x, noise_labels, labels)
    output, bottleneck = jax.eval_shape(
        functools.partial(module.apply, method="call_with_bottleneck"),
        variables,
        x,
        noise_labels,
        labels,
    )
    smallest = size >> (len(module.channel_mult) - 1)
    assert output.shape == x.shape
    assert bottleneck.shape == (2, smallest, smallest, 8 * module.channel_mult[-1])


def test_dropout_acts_in_every_block_and_only_with_a_key(network):
    module, args = network(dropout=0.5), inputs()
    params = jax.eval_shape(module.init, jax.random.key(0), *args)
    without_key = jax.make_jaxpr(module.apply)(params, *args)
    assert str(without_key) == str(jax.make_jaxpr(network().apply)(params, *args))
    with_key = jax.make_jaxpr(
        lambda params, key: module.apply(params, *args, rngs={"dropout": key})
    )(params, jax.random.key(0))
    assert count(with_key.jaxpr, "random_bits") == BLOCKS


def test_dropout_zeroes_half_of_what_the_second_convolution_sees():
    block = UNetBlock(8, INITS, dropout=0.5)
    x, embedding = jnp.ones((1, 8, 8, 8)), jnp.ones((1, 4))
    _, seen = block.apply(
        block.init(jax.random.key(0), x, embedding),
        x,
        embedding,
        rngs={"dropout": jax.random.key(1)},
        capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
        mutable=["intermediates"],
    )
    (dropped,) = jax.tree.leaves(seen)
    assert 0.4 < float((dropped == 0).mean()) < 0.6


@pytest.mark.parametrize("channels, heads", [(32, 0), (64, 1), (128, 2)])
def test_adm_attends_with_one_head_per_64_channels(channels, heads):
    module = AdmUNet(**{**SMALL, "model_channels": channels, "channel_mult": (1,), "resolution": 4})
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs(resolution=4))
    assert ("qkv" in shapes["params"]["enc_4x4_block0"]) == (heads > 0)
    text = str(jax.make_jaxpr(module.apply)(shapes, *inputs(resolution=4)))
    logits = f"f32[{2 * heads},16,16] = dot_general"  # batch 2, 16 pixels to 16 pixels
    assert (logits in text) == (heads > 0)
