"""CLIP's encoders: what golden vectors cannot show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.networks.clip_config import example_text_inputs, text_from_config, vision_from_config
from dmd2_jax.networks.initialise import init_variables
from tests.families import tiny_models


@functools.cache
def text(end_token: int = 2):
    config = tiny_models.TEXT | {"eos_token_id": end_token}
    module = text_from_config(config, projection=False)
    params = init_variables(module, jax.random.key(0), *example_text_inputs(module))
    return jax.jit(functools.partial(module.apply, params))


def test_text_encoder_reads_no_later_token():
    first = text()(jnp.asarray([[1, 5, 7, 19, 0, 0]]))
    second = text()(jnp.asarray([[1, 5, 7, 19, 3, 4]]))
    np.testing.assert_array_equal(first.last_hidden_state[:, :4], second.last_hidden_state[:, :4])
    assert not np.array_equal(first.last_hidden_state[:, 4:], second.last_hidden_state[:, 4:])


@pytest.mark.parametrize(("end_token", "place"), [(2, 3), (7, 2)])
def test_text_encoder_pools_the_end_token(end_token, place):
    features = text(end_token)(jnp.asarray([[1, 5, 7, 19, 7, 0]]))
    np.testing.assert_array_equal(features.pooled, features.last_hidden_state[:, place])


def test_text_encoder_refuses_a_prompt_beyond_its_places():
    with pytest.raises(ValueError, match="n <= 6; truncate"):
        text()(jnp.zeros((1, 7), jnp.int32))


def test_text_from_config_refuses_an_unknown_activation():
    with pytest.raises(ValueError, match="hidden_act='relu', expected one of"):
        text_from_config(tiny_models.TEXT | {"hidden_act": "relu"}, projection=False)


def test_vision_encoder_refuses_images_of_another_size():
    module = vision_from_config(tiny_models.VISION)
    with pytest.raises(ValueError, match=r"expected \[b, 8, 8, 3\]"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 6, 6, 3)))
