"""The autoencoders: what golden vectors cannot show."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from dmd2_jax.networks.vae import Gaussian, vae_from_config
from dmd2_jax.networks.vae_tiny import tiny_vae_from_config
from tests.families import tiny_models


def test_gaussian_sample_is_mean_plus_std_times_noise():
    gaussian = Gaussian(jnp.full((1, 1, 1, 1), 2.0), jnp.full((1, 1, 1, 1), 2 * math.log(3)))
    assert float(gaussian.sample(jnp.full((1, 1, 1, 1), 0.5)).item()) == pytest.approx(3.5)


@pytest.mark.parametrize("build", [vae_from_config, tiny_vae_from_config])
def test_autoencoders_refuse_images_that_cannot_be_halved(build):
    config = tiny_models.VAE if build is vae_from_config else tiny_models.TINY_VAE
    with pytest.raises(ValueError, match="divisible by 2; resize or crop"):
        jax.eval_shape(build(config).init, jax.random.key(0), jnp.zeros((1, 5, 4, 3)))


@pytest.mark.parametrize("build", [vae_from_config, tiny_vae_from_config])
def test_autoencoders_refuse_latents_of_other_channels(build):
    config = tiny_models.VAE if build is vae_from_config else tiny_models.TINY_VAE
    with pytest.raises(ValueError, match=r"expected \[b, h, w, 4\]"):
        jax.eval_shape(
            functools.partial(build(config).init, method="decode"),
            jax.random.key(0),
            jnp.zeros((1, 4, 4, 3)),
        )


def test_vae_from_config_refuses_other_blocks():
    config = tiny_models.VAE | {"down_block_types": ["DownBlock2D"] * 2}
    with pytest.raises(ValueError, match="down_block_types="):
        vae_from_config(config)


def test_tiny_vae_from_config_refuses_unequal_lists():
    with pytest.raises(ValueError, match="one entry a level in both"):
        tiny_vae_from_config(tiny_models.TINY_VAE | {"num_encoder_blocks": [1]})
