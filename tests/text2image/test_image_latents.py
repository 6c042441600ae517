"""Images to latents: AutoencoderTiny's equal diffusers', and why latents are not numbers.

AutoencoderKL's are compared in tests/commands/test_cache.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.text2image.image_latents import (
    check_finite,
    decode_latents,
    encode_images,
    latent_shape,
)
from tests.families import tiny_models

BAD = np.array([[1.0, 2.0], [3.0, np.nan], [np.inf, 0.0]])
NAMES = ["a.png", "b.png", "c.png"]


def test_latents_and_images_equal_diffusers_tiny_autoencoder() -> None:
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        scaling_factor=0.5,
    )
    model = PublishedModel.from_config(dict(theirs.config) | {"_class_name": "AutoencoderTiny"})
    params = model.from_tensors({k: v.numpy() for k, v in theirs.state_dict().items()})
    images = np.random.RandomState(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        latents = theirs.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latents
    expected = 0.5 * latents.permute(0, 2, 3, 1).numpy()
    eps = np.ones_like(expected)  # without effect: there is no distribution
    actual = encode_images(model.module, params, jnp.asarray(images), jnp.asarray(eps))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    with torch.no_grad():
        back = theirs.decode(latents).sample
    images = decode_latents(model.module, params, actual)
    np.testing.assert_allclose(images, back.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_decode_latents_undoes_scale_and_shift() -> None:
    config = dict(tiny_models.TINY_VAE) | {"scaling_factor": 0.5, "shift_factor": 0.25}
    module = PublishedModel.from_config(config).module
    images = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (1, 4, 4, 3)), jnp.float32)

    @jax.jit
    def both() -> tuple[jax.Array, jax.Array]:
        params = module.init(jax.random.key(0), images)
        latents = encode_images(module, params, images)
        return decode_latents(module, params, latents), module.apply(params, images)

    actual, expected = both()  # module.apply knows of no scale and shift
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("config", [tiny_models.VAE, tiny_models.TINY_VAE])
def test_latent_shape_is_the_encoders(config) -> None:
    module = PublishedModel.from_config(config).module
    assert latent_shape(module, 10) == (5, 5, 4)
    with pytest.raises(ValueError, match="resolution=9, expected a multiple of 2.*try 8"):
        latent_shape(module, 9)


@pytest.mark.parametrize(
    "dtype, message",
    [
        (jnp.float16, "overflow float16, of which its publisher warns: run it in float32"),
        (jnp.bfloat16, r"overflow bfloat16.*`vae_dtype=float32`"),
        (jnp.float32, "its weights are damaged"),
    ],
)
def test_check_finite_names_image_type_and_remedy(dtype, message: str) -> None:
    module = PublishedModel.from_config(tiny_models.VAE, dtype=dtype).module
    with pytest.raises(ValueError, match=rf"latents of b\.png .*\(2 of 3 images\).*{message}"):
        check_finite(BAD, NAMES, module)


def test_check_finite_says_what_is_not_finite() -> None:
    module = PublishedModel.from_config(tiny_models.VAE, dtype=jnp.float16).module
    with pytest.raises(ValueError, match=r"the autoencoder's images of b\.png are not finite"):
        check_finite(BAD, NAMES, module, "images")


def test_check_finite_lets_numbers_pass() -> None:
    check_finite(BAD[:1], NAMES[:1], PublishedModel.from_config(tiny_models.VAE).module)
