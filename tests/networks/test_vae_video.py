"""The autoencoder of videos on single frames: recorded numbers, diffusers itself, and bad input.

families/recorded/qwen_image/vae.json is the config of a diffusers 0.42.1 AutoencoderKLQwenImage;
recorded.npz has an image, the moments of its z and the image decoded from their mean, in torch's
layouts. The weights are `recipe(shapes, 8, 1.0)` of golden/README.md.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families.published.folder import read_component
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.text2image.image_latents import decode_latents, encode_images, latent_shape
from tests.conformance.derive import nhwc, recipe, relative

RECORDED = Path(__file__).parents[1] / "families" / "recorded" / "qwen_image"
CONFIG = json.loads((RECORDED / "vae.json").read_text())


@pytest.fixture(scope="module")
def recorded():
    """Return (the recorded model, its tensors, its weights, the arrays)."""
    model = PublishedModel.from_config(CONFIG)
    tensors = recipe(model.tensor_shapes(), 8, 1.0)
    return model, tensors, model.from_tensors(tensors), dict(np.load(RECORDED / "recorded.npz"))


def test_latents_and_images_are_the_recorded_ones(recorded):
    model, _, params, arrays = recorded
    image, mean = (np.asarray(nhwc(arrays[name])) for name in ("image", "mean"))
    posterior = model.module.apply(params, image, method="encode")
    assert relative(posterior.mean, mean) < 1e-5
    assert relative(posterior.logvar, nhwc(arrays["logvar"])) < 1e-5
    latents = (mean - np.array(CONFIG["latents_mean"])) / np.array(CONFIG["latents_std"])
    assert relative(encode_images(model.module, params, image), latents) < 1e-5
    decoded = decode_latents(model.module, params, jnp.asarray(latents, jnp.float32))
    assert relative(decoded, nhwc(arrays["decoded"])) < 1e-5
    assert latent_shape(model.module, (8, 12)) == (2, 3, 3)


def test_images_are_clipped_as_the_published_network_clips_them(recorded):
    model, _, params, _ = recorded
    z = 1e3 * np.random.default_rng(0).normal(size=(1, 2, 2, 3)).astype("f4")
    moved = jax.tree.map(lambda x: x, params)
    moved["params"]["decoder"]["conv_out"]["bias"] += jnp.array([2.0, -2.0, 0.0])
    images = model.module.apply(moved, z, method="decode")
    assert (images[..., 0] == 1).all() and (images[..., 1] == -1).all()
    assert np.abs(images[..., 2]).max() < 1


def test_weights_go_out_whole_as_they_came_in(recorded):
    model, expected, params, _ = recorded
    actual = model.to_tensors(params)
    assert (
        sorted(actual) == sorted(expected)
        and "decoder.up_blocks.0.upsamplers.0.time_conv.bias" in actual
    )
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attn_scales": [0.5]}, r"attn_scales=\[0.5\]"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"temperal_downsample": [True]}, r"temperal_downsample=\[True\] with dim_mult"),
        ({"latents_std": [1.0, 0.0, 1.0]}, "of latents_std above 0"),
        ({"latents_mean": [1.0]}, "latents_mean and latents_std of 1 and 3 numbers with z_dim=3"),
        ({"is_residual": True}, "is_residual=True is no setting"),
    ],
)
def test_config_of_another_network_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        PublishedModel.from_config(CONFIG | change)


def test_statistics_that_a_file_leaves_out_are_the_published_ones():
    module = PublishedModel.from_config({"_class_name": "AutoencoderKLQwenImage"}).module
    given = [np.array(it) for it in (module.mean, module.std)]
    # Of diffusers 0.42.1: each number's place, from 1, times the number, summed up.
    sums = [np.dot(np.arange(1, 17), it) for it in given]
    np.testing.assert_allclose(sums, [-0.2126, 286.1255], atol=1e-9)
    z = np.random.default_rng(0).normal(size=(1, 2, 2, 16)).astype("f4")
    np.testing.assert_allclose(module.scaled(z), (z - given[0]) / given[1], rtol=1e-5, atol=1e-6)


def test_arrays_of_other_shapes_are_refused(recorded):
    model, _, params, _ = recorded
    with pytest.raises(ValueError, match="divisible by 4"):
        model.module.apply(params, jnp.zeros((1, 8, 6, 3)), method="encode")
    with pytest.raises(ValueError, match=r"expected \[b, h, w, 3\]"):
        model.module.apply(params, jnp.zeros((1, 1, 2, 2, 3)), method="decode")


@pytest.mark.parametrize("seed", range(2))
def test_networks_of_any_size_are_those_of_diffusers(seed, tmp_path):
    torch = pytest.importorskip("torch", reason="diffusers' networks are in torch")
    diffusers = pytest.importorskip("diffusers", reason="it is what is compared with")
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    levels, z = int(random.integers(2, 4)), int(random.integers(2, 5))
    theirs = diffusers.AutoencoderKLQwenImage(
        base_dim=int(random.integers(2, 4)) * 2,
        z_dim=z,
        dim_mult=random.integers(1, 4, size=levels).tolist(),
        num_res_blocks=int(random.integers(1, 3)),
        temperal_downsample=(random.random(levels - 1) < 0.5).tolist(),
        latents_mean=random.normal(size=z).tolist(),
        latents_std=random.uniform(0.5, 2, size=z).tolist(),
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    model, params = read_component(tmp_path)
    images = random.uniform(-1, 1, size=(1, 8, 12, 3)).astype("f4")
    with torch.no_grad():
        mean = theirs.encode(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())[:, :, None])
        mean = mean.latent_dist.mean
        decoded = theirs.decode(mean).sample
    ours = model.module.apply(params, images, method="encode")
    expected = nhwc(mean[:, :, 0].numpy())
    assert relative(ours.mean, expected) < 1e-5
    actual = model.module.apply(params, expected, method="decode")
    assert np.abs(actual - nhwc(decoded[:, :, 0].numpy())).max() < 1e-5
