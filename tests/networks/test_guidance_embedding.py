"""A network that is told a guidance scale, in the form that diffusers' pipelines have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.load import load_config
from dmd2_jax.config.refused import Refused
from dmd2_jax.diffusion.guidance import Guided
from dmd2_jax.families.edm import family as edm
from dmd2_jax.families.sit import family as sit
from dmd2_jax.networks.guidance_embedding import (
    GUIDANCE,
    at_scale,
    folded,
    scale_embedding,
    scale_kernels,
)
from dmd2_jax.recipe.guidance import told_network
from dmd2_jax.recipe.open import build_family
from tests.tiny import get_config

W = jnp.asarray([1.5, 3.0, 7.5])


def test_embedding_is_that_of_diffusers_pipelines() -> None:
    """By diffusers 0.42: LatentConsistencyModelPipeline.get_guidance_scale_embedding(w - 1)."""
    some = [0, 1, 64, 127, 128, 200, 255]
    recorded = [
        [-0.46777180, 0.06669866, -0.99400502, 0.04997916, -0.88384926, -0.90377921, 0.99875027],
        [0.93003953, 0.26383200, 0.42432237, 0.19866930, -0.36745957, -0.19701666, 0.98006660],
    ]
    # Angles of thousands in float32: a frequency's last bit is 1e-4 of them.
    np.testing.assert_allclose(scale_embedding(W[:2])[:, some], recorded, atol=3e-4)
    eight = [
        [-0.04478474, 0.11018915, 0.99112326, 0.60518634, -0.99899667, 0.99391061, 0.13294603,
         0.79608387],
    ]  # fmt: skip
    np.testing.assert_allclose(scale_embedding(W[2:], 8), eight, atol=1e-3)


def networks() -> list:
    small = {"resolution": 8, "image_channels": 1, "num_classes": 3, "model_channels": 8}
    one = {"channel_mult": (1,), "num_blocks": 1, "attention_resolutions": (), "dropout": 0.0}
    tokens = {"width": 32, "depth": 1, "heads": 2, "resolution": 8, "num_classes": 3}
    return [
        pytest.param(edm.build(small | one), id="adm"),
        pytest.param(edm.build(small | one | {"network": "song"}), id="song"),
        pytest.param(sit.build(tokens | {"image_channels": 1}), id="sit"),
    ]


@pytest.mark.parametrize("family", networks())
def test_a_network_begins_as_it_was_and_at_one_scale_is_a_plain_one(family) -> None:
    random = np.random.RandomState(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.3 * random.standard_normal(x.shape), jnp.float32),
        family.param_shapes(),
    )
    kernels = scale_kernels(params, family.guidance_layer)
    x_t, t = jnp.asarray(random.standard_normal((3, 8, 8, 1)), jnp.float32), jnp.full(3, 0.7)
    cond = family.cond(np.arange(3))
    config = get_config()
    config.distill.guidance_range = (1.0, 8.0)
    told, plain = told_network(config, family), family.denoiser
    begun = told.x0({**params, GUIDANCE: kernels}, x_t, t, Guided(cond, W))
    np.testing.assert_array_equal(begun, plain.x0(params, x_t, t, cond))
    learned = jax.tree.map(
        lambda x: jnp.asarray(0.3 * random.standard_normal(x.shape), jnp.float32), kernels
    )
    params = {**params, GUIDANCE: learned}
    apart = told.x0(params, x_t, t, Guided(cond, W))
    assert np.abs(apart - begun).max() > 1e-3
    close = 1e-5 * float(np.abs(apart).max())
    for i, w in enumerate(W.tolist()):
        one = plain.x0(folded(params, w), x_t, t, cond)
        np.testing.assert_allclose(one[i], apart[i], atol=close)


def test_only_a_layer_with_a_bias_takes_a_scale() -> None:
    params = {"params": {"linear_1": {"kernel": jnp.ones((2, 3))}}}
    with pytest.raises(Refused, match="no layer of the network is called 'linear_1' and has a b"):
        scale_kernels(params, "linear_1")


def test_the_scale_is_added_to_the_input_of_its_layer() -> None:
    kernel = jnp.zeros((256, 2)).at[128].set(jnp.asarray([1.0, 2.0]))  # of cos(1000 (w - 1))
    params = {"params": {"a": {"kernel": 0}}, GUIDANCE: {"a": kernel}}
    told = at_scale(params, jnp.asarray([1.0, 1.001]))
    assert set(told) == {"params", "added"}
    expected = [[1.0, 2.0], [np.cos(1.0), 2 * np.cos(1.0)]]
    np.testing.assert_allclose(told["added"]["a"]["input"], expected, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["imagenet64", "cifar10", "sit_xl_imagenet256", "sd15", "sd35_medium"]
)
def test_every_kind_of_network_has_a_layer_that_scales_are_told_to(name: str) -> None:
    family = build_family(load_config(name))
    shapes = family.param_shapes()
    (kernel,) = jax.eval_shape(lambda it: scale_kernels(it, family.guidance_layer), shapes).values()
    assert kernel.shape[0] == 256
