"""FLUX.2-klein as a family: numbers recorded from diffusers, and diffusers where it is there.

recorded/flux2_klein has the configs of diffusers 0.39.0's Flux2Transformer2DModel and
AutoencoderKLFlux2 and, in torch's layouts, what they were given and gave (torch 2.13.0, CPU):
latents, times and the embeddings of prompts; an image, its latents in patches of 2 x 2, normalised,
and the image of those. Weights are `recipe(shapes, 7, 1.0)` and, of the autoencoder,
`recipe(shapes, 8, 1.0)` of golden/README.md.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.text import read_json
from dmd2_jax.families import flux2_klein
from dmd2_jax.families.published.configs import FLUX2_KLEIN_4B, FLUX2_SCHEDULER
from dmd2_jax.families.published.flow_scheduler import PIPELINE_SHIFTS, flow_shift, flow_times
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.networks.guidance_embedding import scale_kernels
from dmd2_jax.networks.lora import matching_targets
from dmd2_jax.networks.step_embedding import with_steps
from dmd2_jax.text2image.image_latents import decode_latents, encode_images, latent_shape
from tests.conformance.derive import apart_in_time, nhwc, recipe, relative

RECORDED = Path(__file__).parent / "recorded" / "flux2_klein"
CONFIG = {
    "_class_name": "Flux2Transformer2DModel",
    "attention_head_dim": 8,
    "axes_dims_rope": [2, 2, 2, 2],
    "guidance_embeds": False,
    "in_channels": 12,
    "joint_attention_dim": 10,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
    "timestep_guidance_channels": 16,
}
SCHEDULER = FLUX2_SCHEDULER | PIPELINE_SHIFTS["Flux2KleinPipeline"]


def built(**options):
    """Build a small family."""
    transformer = CONFIG | options.pop("transformer", {})
    given = {"transformer": transformer, "scheduler": {}, "resolution": (3, 4)}
    return flux2_klein.build(given | options)


def inputs(family, height: int = 3, width: int = 4, tokens: int = 6):
    """Draw (params, x_t, t, cond); every weight is random, so that no layer is trivial."""
    random = np.random.default_rng(0)
    params = family.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype("f4"), params)
    x_t = random.normal(size=(2, height, width, family.image_shape[-1])).astype("f4")
    embeds = random.normal(size=(2, tokens, family.model.config["joint_attention_dim"]))
    return params, x_t, jnp.asarray([1.0, 0.3]), {"prompt_embeds": embeds.astype("f4")}


@pytest.fixture(scope="module")
def arrays():
    """Return the recorded arrays."""
    return dict(np.load(RECORDED / "recorded.npz"))


@pytest.fixture(scope="module")
def recorded():
    """Return (the recorded network, its tensors)."""
    family = flux2_klein.open_folder(RECORDED / "transformer", resolution=(3, 4))
    return family, recipe(family.tensor_shapes(), 7, 1.0)


@pytest.fixture(scope="module")
def vae():
    """Return (the recorded autoencoder, its weights)."""
    model = PublishedModel.from_config(read_json(RECORDED / "vae" / "config.json"))
    tensors = recipe(model.tensor_shapes(), 8, 1.0) | {"bn.num_batches_tracked": np.zeros((), int)}
    return model.module, model.from_tensors(tensors)


def test_x0_is_that_of_the_recorded_prediction(recorded, arrays):
    family, tensors = recorded
    x_t, out = (np.asarray(nhwc(arrays[name])) for name in ("hidden_states", "out"))
    cond = {"prompt_embeds": arrays["prompt_embeds"]}
    params, t = family.from_state_dict(tensors), arrays["t"]
    actual = np.asarray(family.denoiser.x0(params, x_t, t, cond))
    times = t[:, None, None, None]
    assert relative(actual, x_t - times * out) < 1e-5
    assert relative((x_t - actual) / times, out) < 1e-5


def test_weights_go_out_as_they_came_in(recorded):
    family, expected = recorded
    actual = family.to_state_dict(family.from_state_dict(expected))
    assert sorted(actual) == sorted(expected)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)


def test_latents_are_the_recorded_normalised_patches(vae, arrays):
    module, params = vae
    image = np.asarray(nhwc(arrays["image"]))
    latents = jax.jit(encode_images, static_argnums=0)(module, params, image)
    assert relative(latents, nhwc(arrays["latents"])) < 1e-5
    assert latents.shape[1:] == latent_shape(module, (8, 12)) == (2, 3, 12)
    images = jax.jit(decode_latents, static_argnums=0)(module, params, latents)
    assert relative(images, nhwc(arrays["decoded"])) < 1e-5


def test_draws_of_latents_have_the_deviation_of_their_patches(vae, arrays):
    module, params = vae
    image, eps = np.asarray(nhwc(arrays["image"])), np.ones((1, 2, 3, 12), "f4")
    posterior = module.apply(params, image, method="encode")
    moved = encode_images(module, params, image, eps) - encode_images(module, params, image)
    deviation = np.sqrt(params["params"]["bn"]["running_var"] + 1e-4)
    assert relative(moved * deviation, posterior.std) < 1e-5


def test_autoencoder_refuses_what_does_not_fit_by_name(vae):
    module, params = vae
    with pytest.raises(ValueError, match="divisible by 4"):
        module.apply(params, np.zeros((1, 8, 10, 3)), method="encode")
    with pytest.raises(ValueError, match=r"expected \[b, h, w, 12\]"):
        decode_latents(module, params, jnp.zeros((1, 2, 3, 3)))
    config = read_json(RECORDED / "vae" / "config.json")
    for change, message in (
        ({"patch_size": [1, 1]}, r"patch_size=\[1, 1\]"),
        ({"scaling_factor": 0.3}, "scaling_factor=0.3"),
        ({"decoder_block_out_channels": [4]}, "decoder_block_out_channels"),
    ):
        with pytest.raises(ValueError, match=message):
            PublishedModel.from_config(config | change)


@pytest.mark.parametrize("name", ["klein_4b", "klein_9b"])
def test_published_size_is_of_1024_pixels_and_512_tokens(name):
    family = flux2_klein.build({"pipeline": name})
    assert family.image_shape == (64, 64, 128) and family.image_tokens == 4096
    assert family.cond_shapes(2)["prompt_embeds"].shape[1] == 512


def test_settings_that_a_file_leaves_out_are_those_of_diffusers():
    usual = {"eps": 1e-6, "mlp_ratio": 3.0, "rope_theta": 2000, "timestep_guidance_channels": 256}
    assert FLUX2_KLEIN_4B.items() >= usual.items()
    bare = {key: value for key, value in FLUX2_KLEIN_4B.items() if key not in usual}
    told = flux2_klein.build({"transformer": bare | usual, "scheduler": {}})
    untold = flux2_klein.build({"transformer": bare, "scheduler": {}})
    assert untold.model.module == told.model.module
    config = read_json(RECORDED / "vae" / "config.json")
    del config["batch_norm_eps"]
    assert PublishedModel.from_config(config).module.norm_eps == 1e-4


def test_shift_follows_tokens_and_steps_as_the_pipeline_has_it():
    # compute_empirical_mu of diffusers 0.39.0, and what its scheduler makes of four sigmas with it.
    mus = {(64, 4): 1.9492865247731874, (4096, 4): 2.291179894115571}
    mus |= {(4096, 50): 2.0233511571292637, (4301, 4): 1.18469693, (4300, 50): 2.0446937905157894}
    for (tokens, steps), mu in mus.items():
        assert flow_shift(SCHEDULER, tokens, steps) == pytest.approx(np.exp(mu), rel=1e-12)
    times = [1.0, 0.9546917080879211, 0.8753688931465149, 0.7007085680961609, 0.0]
    np.testing.assert_allclose(flow_times(SCHEDULER, 4, 64), times, atol=1e-7)
    levels = flux2_klein.build({"pipeline": "klein_4b"}).denoiser.schedule.levels
    assert levels[499] == pytest.approx(1 / (1 + 1 / flow_shift(SCHEDULER, 4096, 50)))


def test_adapters_are_for_attention_and_gated_layers():
    family = built()
    targets = matching_targets(family.param_shapes(), family.lora_targets, family.tensor_name)
    assert targets == family.lora_targets


def test_all_ways_to_compute_agree():
    plain = built()
    arguments = inputs(plain)
    expected, maps = plain.denoiser.x0_and_features(*arguments)
    assert [m.shape for m in maps] == [(2, 3, 4, 16)] * 2
    for options in ({"scan_layers": True}, {"scan_layers": True, "remat": "full"}):
        other = built(**options).denoiser
        assert relative(other.x0(*arguments), expected) < 1e-5
        for ours, theirs in zip(other.features(*arguments), maps, strict=True):
            assert relative(ours, theirs) < 1e-5
    other = built(dtype="bfloat16")
    rounded = other.denoiser.x0(*arguments)
    assert rounded.dtype == jnp.float32 and 1e-6 < relative(rounded, expected) < 0.03
    params, x_t, _, cond = arguments
    assert apart_in_time(other, params, x_t, cond) > 1e-3


def test_gradients_reach_every_weight_and_are_finite():
    params, x_t, t, cond = inputs(family := built())
    loss = jax.grad(lambda p: jnp.square(family.denoiser.x0(p, x_t, t, cond)).mean())
    for path, leaf in jax.tree_util.tree_leaves_with_path(loss(params)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_step_and_range_of_scales_are_refused_as_there_is_no_bias():
    family = built()
    with pytest.raises(ValueError, match=r"timestep_embedder.linear_2' and has a bias"):
        with_steps(family.param_shapes(), family.time_layer, 4)
    with pytest.raises(ValueError, match=r"timestep_embedder.linear_1' and has a bias"):
        scale_kernels(family.param_shapes(), family.guidance_layer)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt_mask": np.ones((2, 6), "f4")}, r"cond is \['prompt_embeds', 'prompt_mask'\]"),
        ({"guidance": np.ones(2, "f4")}, r"cond is \['guidance', 'prompt_embeds'\]"),
        ({"prompt_embeds": np.ones((2, 6, 7), "f4")}, "prompt_embeds of width 7, expected 12 and"),
    ],
)
def test_condition_that_does_not_fit_is_refused_by_name(change, message):
    params, x_t, t, cond = inputs(family := built())
    with pytest.raises(ValueError, match=message):
        family.denoiser.x0(params, x_t, t, cond | change)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"transformer": {"_class_name": "FluxTransformer2DModel"}}, "FluxTransformer2DModel"),
        ({"transformer": {"guidance_embeds": True}}, "FLUX.2-dev does; use klein"),
        ({"transformer": {"out_channels": 24}}, "in_channels=12 with out_channels=24"),
        ({"transformer": {"patch_size": 2}}, "patch_size=2, expected 1"),
        ({"transformer": {"axes_dims_rope": [2, 2, 4]}}, "axes_dims_rope"),
        ({"transformer": {"pooled_projection_dim": 3}}, "pooled_projection_dim=3 is no setting"),
        ({"feature_blocks": (9,)}, "feature_blocks"),
        ({"scheduler": {"_class_name": "DDIMScheduler"}}, "DDIMScheduler"),
    ],
)
def test_what_is_not_built_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        built(**options)


def draw(random: np.random.Generator) -> dict:
    """Draw a config of any size."""
    axes = [2 * int(random.integers(1, 3)) for _ in range(4)]
    return {
        "attention_head_dim": sum(axes),
        "axes_dims_rope": axes,
        "eps": float(random.choice([1e-6, 1e-3])),
        "guidance_embeds": False,
        "in_channels": int(random.integers(2, 9)),
        "joint_attention_dim": int(random.integers(3, 9)),
        "mlp_ratio": float(random.choice([3.0, 1.7])),
        "num_attention_heads": int(random.integers(1, 4)),
        "num_layers": int(random.integers(1, 3)),
        "num_single_layers": int(random.integers(1, 3)),
        "rope_theta": int(random.choice([2000, 100])),
        "timestep_guidance_channels": 2 * int(random.integers(2, 9)),
    }


@pytest.mark.parametrize("seed", range(3))
def test_networks_of_any_size_are_those_of_diffusers(seed, tmp_path):
    torch = pytest.importorskip("torch", reason="diffusers' networks are in torch")
    diffusers = pytest.importorskip("diffusers", reason="it is what is compared with")
    torch.manual_seed(seed)
    theirs = diffusers.Flux2Transformer2DModel(**draw(np.random.default_rng(seed))).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    family, params = flux2_klein.read(tmp_path, resolution=8)
    _, x_t, t, cond = inputs(family, *((3, 5), (1, 7), (9, 2))[seed], tokens=3 + 4 * seed)
    times, embeds = np.array(t), torch.from_numpy(cond["prompt_embeds"])
    pipeline, latents = diffusers.Flux2KleinPipeline, torch.from_numpy(x_t.transpose(0, 3, 1, 2))
    with torch.no_grad():
        out = theirs(
            hidden_states=pipeline._pack_latents(latents),
            encoder_hidden_states=embeds,
            timestep=torch.from_numpy(times),
            img_ids=pipeline._prepare_latent_ids(latents),
            txt_ids=pipeline._prepare_text_ids(embeds),
            return_dict=False,
        )[0]
    ours = np.asarray(family.denoiser.x0(params, x_t, t, cond))
    raw = out.numpy().reshape(x_t.shape)
    assert relative(ours, x_t - times[:, None, None, None] * raw) < 1e-5
    assert relative((x_t - ours) / times[:, None, None, None], raw) < 1e-5
