"""Stable Diffusion's networks against the vectors recorded from diffusers and transformers."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families.published.folder import (
    read_component,
    read_component_config,
    write_component,
)
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.weights.state_dict import read_safetensors
from tests.conformance.derive import nchw, nhwc, relative

OUTPUT = 1e-5
SCALAR = 2e-5
GRADIENT = 5e-5

UNETS = ("unet_sd15", "unet_sdxl")
TEXTS = ("text_encoder", "text_encoder_tf4", "text_encoder_2")
ALL = (*UNETS, "vae_kl", "vae_tiny", *TEXTS, "clip")


class Recorded:
    """One recorded network: ours with its weights, and the recorded arrays."""

    def __init__(self, golden: Path, name: str) -> None:
        folder = golden / "diffusers_models"
        self.folder = folder / name
        self.model, self.params = read_component(self.folder, classes=CLASSES)
        # The same weights as transformers 4 wrote them; the outputs were recorded once.
        self.arrays = dict(np.load(folder / f"{name.removesuffix('_tf4')}.npz"))

    def apply(self, *inputs, method=None):
        """Run the network on NHWC inputs."""
        run = jax.jit(functools.partial(self.model.module.apply, method=method))
        return run(self.params, *inputs)

    def nhwc(self, name: str) -> jax.Array:
        """Return a recorded image as the network takes it."""
        return jnp.asarray(nhwc(self.arrays[name]))


class RecordedUNet(Recorded):
    """A recorded U-Net, run once for all of its tests."""

    @functools.cached_property
    def results(self):
        """(prediction, bottleneck, features, scalar, gradients by sample and by prompt)."""
        added = [jnp.asarray(self.arrays[k]) for k in ("text_embeds", "time_ids") if k in self]
        weights, times = self.nhwc("w"), jnp.asarray(self.arrays["timestep"])
        module = self.model.module

        @jax.jit
        def run(params, sample, prompt):
            def scalar(sample, prompt):
                out, middle = module.apply(
                    params, sample, times, prompt, *added, method="call_with_bottleneck"
                )
                return jnp.sum(weights * out), (out, middle)

            gradient = jax.grad(scalar, (0, 1), has_aux=True)
            slopes, (out, middle) = gradient(sample, prompt)
            features = module.apply(params, sample, times, prompt, *added, method="features")
            return out, middle, features, slopes

        prompt = jnp.asarray(self.arrays["encoder_hidden_states"])
        out, middle, features, slopes = run(self.params, self.nhwc("sample"), prompt)
        # In float64, as its terms cancel.
        value = np.sum(np.asarray(weights, np.float64) * np.asarray(out, np.float64))
        return out, middle, features, value, slopes

    def __contains__(self, name: str) -> bool:
        return name in self.arrays


@pytest.fixture(scope="module")
def unet(request: pytest.FixtureRequest, golden: Path) -> RecordedUNet:
    return RecordedUNet(golden, request.param)


def recorded_unets(test):
    """Run a test for every recorded U-Net."""
    return pytest.mark.parametrize("unet", UNETS, indirect=True, scope="module")(test)


@recorded_unets
def test_unet_prediction_equals_recorded_out(unet):
    assert relative(nchw(unet.results[0]), unet.arrays["out"]) < OUTPUT


@recorded_unets
def test_unet_bottleneck_equals_recorded_mid(unet):
    assert relative(nchw(unet.results[1]), unet.arrays["mid"]) < OUTPUT


@recorded_unets
def test_unet_features_are_the_recorded_ones(unet):
    features = unet.results[2]
    assert len(features) == unet.arrays["n_classify_features"]
    means = [float(feature.mean()) for feature in features]
    assert relative(means, unet.arrays["classify_feature_means"]) < OUTPUT


@recorded_unets
def test_unet_scalar_equals_recorded_scalar(unet):
    assert relative(unet.results[3], unet.arrays["scalar"]) < SCALAR


@recorded_unets
def test_unet_gradient_by_sample_equals_recorded_gradient(unet):
    assert relative(nchw(unet.results[4][0]), unet.arrays["dscalar_dsample"]) < GRADIENT


@recorded_unets
def test_unet_gradient_by_prompt_equals_recorded_gradient(unet):
    expected = unet.arrays["dscalar_dencoder_hidden_states"]
    assert relative(unet.results[4][1], expected) < GRADIENT


@recorded_unets
def test_embed_time_equals_recorded_sinusoids(unet):
    actual = unet.apply(jnp.asarray(unet.arrays["timestep"]), method="embed_time")
    assert relative(actual, unet.arrays["time_proj"]) < OUTPUT


@pytest.fixture(scope="module")
def vae(golden: Path) -> Recorded:
    return Recorded(golden, "vae_kl")


def test_vae_encodes_to_the_recorded_distribution(vae):
    gaussian = vae.apply(vae.nhwc("image"), method="encode")
    for name in ("mean", "logvar", "std"):
        assert relative(nchw(getattr(gaussian, name)), vae.arrays[name]) < OUTPUT, name
    assert relative(nchw(gaussian.sample(vae.nhwc("eps"))), vae.arrays["sample"]) < OUTPUT


def test_vae_decodes_to_the_recorded_image(vae):
    actual = vae.apply(vae.nhwc("latents"), method="decode")
    assert relative(nchw(actual), vae.arrays["decoded"]) < OUTPUT


def test_vae_scaling_factor_is_the_recorded_one(vae):
    scale = vae.model.module.scaling_factor
    assert scale == vae.arrays["scaling_factor"]
    actual = vae.apply(vae.nhwc("latents") / scale, method="decode")
    assert relative(nchw(actual), vae.arrays["decoded_scaled"]) < OUTPUT


@pytest.fixture(scope="module")
def tiny_vae(golden: Path) -> Recorded:
    return Recorded(golden, "vae_tiny")


def test_tiny_vae_encodes_to_the_recorded_latents(tiny_vae):
    actual = tiny_vae.apply(tiny_vae.nhwc("image"), method="encode")
    assert relative(nchw(actual), tiny_vae.arrays["latents_enc"]) < OUTPUT


def test_tiny_vae_decodes_to_the_recorded_image(tiny_vae):
    actual = tiny_vae.apply(tiny_vae.nhwc("latents"), method="decode")
    assert relative(nchw(actual), tiny_vae.arrays["decoded"]) < OUTPUT


@pytest.mark.parametrize("name", TEXTS)
def test_text_encoder_equals_recorded_features(golden, name):
    recorded = Recorded(golden, name)
    features = recorded.apply(jnp.asarray(recorded.arrays["input_ids"]))
    expected = {
        "hidden_states": jnp.stack(features.hidden_states),
        "penultimate": features.hidden_states[-2],
        "last_hidden_state": features.last_hidden_state,
        "pooler_output": features.pooled,
        "text_embeds": features.text_embeds,
    }
    for key in set(expected) & set(recorded.arrays):
        assert relative(expected[key], recorded.arrays[key]) < OUTPUT, key


@pytest.fixture(scope="module")
def clip(golden: Path) -> Recorded:
    return Recorded(golden, "clip")


def test_clip_similarities_equal_recorded_logits(clip):
    actual = clip.apply(jnp.asarray(clip.arrays["input_ids"]), clip.nhwc("pixel_values"))
    assert relative(actual, clip.arrays["logits_per_image"]) < OUTPUT
    scale = np.exp(clip.params["params"]["logit_scale"])
    assert relative(scale, clip.arrays["logit_scale_exp"]) < OUTPUT


def test_clip_encoders_alone_equal_recorded_features(clip):
    module, params = clip.model.module, clip.params["params"]
    text = module.text.apply({"params": params["text"]}, jnp.asarray(clip.arrays["input_ids"]))
    image = module.vision.apply({"params": params["vision"]}, clip.nhwc("pixel_values"))
    assert relative(text.text_embeds, clip.arrays["text_features"]) < OUTPUT
    assert relative(image.image_embeds, clip.arrays["image_features"]) < OUTPUT


@pytest.mark.parametrize("name", ALL)
def test_writing_a_component_returns_its_tensors_bit_for_bit(golden, tmp_path, name):
    source = golden / "diffusers_models" / name
    model, params = read_component(source, classes=CLASSES)
    write_component(model, params, tmp_path)
    file = f"{model.kind.file_stem}.safetensors"
    expected, actual = read_safetensors(source / file), read_safetensors(tmp_path / file)
    assert sorted(actual) == sorted(expected)
    for tensor in expected:
        np.testing.assert_array_equal(actual[tensor], expected[tensor], err_msg=tensor, strict=True)
    assert read_component_config(tmp_path) == read_component_config(source)


def test_text_encoders_of_both_releases_hold_the_same_weights(golden):
    folder = golden / "diffusers_models"
    params = [read_component(folder / name)[1] for name in ("text_encoder", "text_encoder_tf4")]
    jax.tree.map(np.testing.assert_array_equal, *params)
