"""Stable Diffusion's U-Net: what golden vectors cannot show."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families.stable_diffusion.unet_config import example_unet_inputs, unet_from_config
from dmd2_jax.networks.initialise import init_variables
from dmd2_jax.networks.time_embedding import sinusoids
from tests.families import tiny_models


@functools.cache
def sdxl(remat: str = "none"):
    shallow = tiny_models.SDXL_UNET | {"transformer_layers_per_block": 1}
    return unet_from_config(shallow, remat=remat)


@functools.cache
def sdxl_inputs():
    """Inputs of the tiny SDXL network; its time ids differ between the samples."""
    random = np.random.default_rng(0)
    shapes = [(2, 4, 4, 4), (2,), (2, 3, 12), (2, 10), (2, 6)]
    return tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)


@functools.cache
def sdxl_params():
    return init_variables(sdxl(), jax.random.key(0), *example_unet_inputs(sdxl()))


@functools.cache
def sdxl_results():
    """(prediction, bottleneck) of one pass, and the prediction's gradient by the weights."""
    return jax.jit(functools.partial(squared, sdxl()))(sdxl_params())


def squared(module, params):
    def loss(params):
        out, middle = module.apply(params, *sdxl_inputs(), method="call_with_bottleneck")
        return jnp.mean(jnp.square(out)), (out, middle)

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_sinusoids_are_sines_and_cosines_of_falling_frequencies():
    actual = sinusoids(jnp.asarray([3.0]), 4, cosine_first=False, freq_shift=0)
    expected = [math.sin(3), math.sin(0.03), math.cos(3), math.cos(0.03)]
    np.testing.assert_allclose(actual[0], expected, rtol=1e-6)


def test_sinusoids_with_cosines_first_end_at_the_longest_period():
    actual = sinusoids(jnp.asarray([3.0]), 4, cosine_first=True, freq_shift=1)
    expected = [math.cos(3), math.cos(3e-4), math.sin(3), math.sin(3e-4)]
    np.testing.assert_allclose(actual[0], expected, rtol=1e-6)


def test_bottleneck_is_the_one_of_the_whole_pass_and_needs_no_decoder():
    _, middle = sdxl_results()[0][1]
    encoder = {
        name: leaf
        for name, leaf in sdxl_params()["params"].items()
        if not name.startswith(("up_blocks", "conv_norm_out", "conv_out"))
    }
    alone = jax.jit(functools.partial(sdxl().apply, method="bottleneck"))
    np.testing.assert_allclose(alone({"params": encoder}, *sdxl_inputs()), middle, atol=1e-6)


def test_remat_changes_no_gradient():
    (_, _), plain = sdxl_results()
    # "full" computes each block again too, as "block" does.
    (_, _), saved = jax.jit(functools.partial(squared, sdxl("full")))(sdxl_params())
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(saved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_remat_keeps_less_from_level_to_level():
    def kept(remat):
        module = sdxl(remat)
        saved = jax.eval_shape(
            lambda params: jax.vjp(lambda p: module.apply(p, *sdxl_inputs()), params)[1],
            sdxl_params(),
        )
        return sum(leaf.size for leaf in jax.tree.leaves(saved))

    weights = sum(leaf.size for leaf in jax.tree.leaves(sdxl_params()))
    none, block, full = (kept(remat) - weights for remat in ("none", "block", "full"))
    assert block < 0.7 * none
    assert full < 0.1 * block


def test_every_weight_reaches_the_prediction():
    _, gradients = sdxl_results()
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.any(leaf)
    ]
    assert silent == []


def test_timestep_cond_is_projected_before_the_time_embedding():
    unet = unet_from_config(tiny_models.UNET | {"time_cond_proj_dim": 3})
    shapes = jax.eval_shape(unet.init, jax.random.key(0), *example_unet_inputs(unet))
    kernel = shapes["params"]["time_embedding"]["cond_proj"]["kernel"]
    assert kernel.shape == (3, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "mish"}, "act_fn='mish', expected 'silu' or 'swish'"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep', expected None"),
        ({"num_attention_heads": 2}, "num_attention_heads=2, expected None"),
        ({"newer_setting": "on"}, "newer_setting='on' is no setting this version knows"),
        ({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "down_block_types=.*Attn"),
        ({"up_block_types": ["UpBlock2D"]}, "expected 2 of"),
        ({"attention_head_dim": [1, 2, 3]}, "has 3 entries, expected one value or one for each"),
        ({"attention_head_dim": 3}, "attention_head_dim=3 .which is the number of heads."),
        ({"norm_num_groups": 3}, "norm_num_groups=3"),
        ({"cross_attention_dim": [8, 12]}, "expected one size for all levels"),
        ({"addition_embed_type": "text"}, "addition_embed_type='text'"),
        ({"addition_embed_type": "text_time"}, "'text_time' with both sizes"),
        ({"transformer_layers_per_block": [[1], [2]]}, "a list inside a list"),
    ],
)
def test_unet_from_config_refuses_what_it_does_not_do(change, message):
    with pytest.raises(ValueError, match=message):
        unet_from_config(tiny_models.UNET | change)


def test_unet_from_config_leaves_the_notes_of_an_average():
    # As diffusers' EMAModel.save_pretrained writes them into unet_ema/config.json.
    notes = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 500}
    notes |= {"power": 0.66, "update_after_step": 0, "use_ema_warmup": False}
    plain = tiny_models.UNET
    assert unet_from_config(plain | notes) == unet_from_config(plain)


def test_unet_from_config_refuses_an_unknown_remat():
    with pytest.raises(ValueError, match="remat='some', expected one of"):
        unet_from_config(tiny_models.UNET, remat="some")


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (2, 5, 4, 4), r"sample has shape \(2, 5, 4, 4\), expected .* divisible by 2"),
        (0, (2, 4, 4, 3), "expected 4 channels"),
        (2, (2, 3, 11), "tokens of 12"),
        (3, (2, 9), "make 33 numbers, expected 34"),
        (3, None, "expected both"),
    ],
)
def test_unet_refuses_inputs_that_do_not_fit(position, shape, message):
    inputs = list(sdxl_inputs())
    inputs[position] = None if shape is None else jnp.zeros(shape)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(sdxl().apply, sdxl_params(), *inputs)


def test_unet_without_added_condition_refuses_one():
    unet = unet_from_config(tiny_models.UNET)
    with pytest.raises(ValueError, match="expected neither"):
        jax.eval_shape(unet.init, jax.random.key(0), *sdxl_inputs())
