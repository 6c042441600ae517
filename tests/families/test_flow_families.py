"""SD 3 and FLUX.1 as families: what the recorded vectors of one size cannot show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families import flux, flux2_klein, qwen_image, sd3, z_image
from dmd2_jax.families.flux.transformer import pack
from dmd2_jax.families.published.configs import (
    FLUX1_DEV_SCHEDULER,
)
from dmd2_jax.families.published.flow_scheduler import flow_shift, flow_times
from tests.conformance.derive import apart_in_time, relative

SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "attention_head_dim": 4,
    "caption_projection_dim": 8,
    "dual_attention_layers": [0],
    "in_channels": 3,
    "joint_attention_dim": 6,
    "num_attention_heads": 2,
    "num_layers": 4,
    "out_channels": 3,
    "pooled_projection_dim": 5,
    "pos_embed_max_size": 5,
    "qk_norm": "rms_norm",
    "sample_size": 8,
}
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 8,
    "axes_dims_rope": [2, 2, 4],
    "guidance_embeds": True,
    "in_channels": 12,
    "joint_attention_dim": 6,
    "num_attention_heads": 1,
    "num_layers": 2,
    "num_single_layers": 3,
    "pooled_projection_dim": 5,
}
FAMILIES = {"sd3": (sd3, SD3), "flux": (flux, FLUX)}


def built(name: str, **options):
    """Build a small family."""
    module, config = FAMILIES[name]
    scheduler = options.pop("scheduler", {})
    transformer = config | options.pop("transformer", {})
    return module.build(
        {"transformer": transformer, "scheduler": scheduler, "resolution": 8} | options
    )


def inputs(family, height: int = 6, width: int = 8):
    """Draw (params, x_t, t, cond); every weight is random, so that no layer is trivial."""
    random = np.random.default_rng(0)
    params = family.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype("f4"), params)
    x_t = random.normal(size=(2, height, width, 3)).astype("f4")
    shapes = family.cond_shapes(2, tokens=4)
    cond = {k: random.normal(size=shape.shape).astype("f4") for k, shape in shapes.items()}
    return params, x_t, jnp.asarray([1.0, 0.3]), cond


@pytest.mark.parametrize("name", FAMILIES)
def test_all_ways_to_compute_agree(name):
    plain = built(name)
    arguments = inputs(plain)
    expected, maps = plain.denoiser.x0_and_features(*arguments)
    assert [m.shape for m in maps] == [(2, 3, 4, 8)] * 2
    for options in ({"scan_layers": True}, {"scan_layers": True, "remat": "full"}):
        other = built(name, **options).denoiser
        assert relative(other.x0(*arguments), expected) < 1e-5
        for ours, theirs in zip(other.features(*arguments), maps, strict=True):
            assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_close_to_float32_and_leaves_times_alone(name):
    arguments = inputs(plain := built(name))
    params, x_t, _, cond = arguments
    rounded = built(name, dtype="bfloat16")
    assert apart_in_time(rounded, params, x_t, cond) > 1e-3
    actual = rounded.denoiser.x0(*arguments)
    assert actual.dtype == jnp.float32
    assert 1e-6 < relative(actual, plain.denoiser.x0(*arguments)) < 0.03


def test_guidance_of_flux_is_the_settings_where_a_condition_has_none():
    params, x_t, t, cond = inputs(built("flux"))
    given = built("flux").denoiser.x0(params, x_t, t, cond | {"guidance": jnp.full((2,), 2.0)})
    set_ = built("flux", guidance=2.0).denoiser.x0(params, x_t, t, cond)
    assert relative(given, set_) < 1e-6
    assert relative(built("flux").denoiser.x0(params, x_t, t, cond), set_) > 1e-3


def test_null_condition_of_sd3_is_the_empty_prompts():
    family = built("sd3")
    null = {"prompt_embeds": np.ones((1, 4, 6), "f4"), "pooled": np.ones((1, 5), "f4")}
    cond = {k: v for k, v in inputs(family)[3].items() if not k.startswith("negative_")}
    with pytest.raises(ValueError, match="empty prompt's embedding"):
        family.denoiser.null_cond(cond)
    twin = family.with_null(null).denoiser.null_cond(cond)
    np.testing.assert_array_equal(twin["prompt_embeds"], np.ones((2, 4, 6)))
    with pytest.raises(ValueError, match="conditions of widths"):
        family.with_null({"prompt_embeds": np.ones((1, 4, 7), "f4"), "pooled": null["pooled"]})


@pytest.mark.parametrize(
    "module, name, blocks",
    [
        (sd3, "sd35_large", (19, 28)),
        (flux, "flux_dev", (28, 42)),
        (flux2_klein, "klein_4b", (12, 18)),
        (z_image, "z_image", (15, 22)),
        (qwen_image, "qwen_image", (30, 45)),
    ],
)
def test_features_are_of_the_middle_block_and_of_that_at_three_quarters(module, name, blocks):
    assert module.build({"pipeline": f"published:{name}"}).model.module.feature_blocks == blocks


def test_shift_of_flux_follows_the_number_of_tokens():
    assert flow_shift(FLUX1_DEV_SCHEDULER, 256) == pytest.approx(np.exp(0.5))
    assert flow_shift(FLUX1_DEV_SCHEDULER, 4096) == pytest.approx(np.exp(1.15))
    times = flow_times(FLUX1_DEV_SCHEDULER, 4, 256)  # as diffusers 0.42.1 prints them
    np.testing.assert_allclose(times, [1, 0.8318, 0.6225, 0.3547, 0], atol=1e-4)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("sd3", {"transformer": {"_class_name": "HunyuanDiT2DModel"}}, "HunyuanDiT2DModel"),
        ("sd3", {"transformer": {"qk_norm": "layer_norm"}}, "qk_norm='layer_norm'"),
        ("sd3", {"transformer": {"added_kv": 3}}, "added_kv=3 is no setting"),
        ("sd3", {"transformer": {"caption_projection_dim": 9}}, "caption_projection_dim=9"),
        ("sd3", {"transformer": {"dual_attention_layers": [7]}}, "dual_attention_layers"),
        ("sd3", {"resolution": 7}, "multiple of 2"),
        ("sd3", {"feature_blocks": (9,)}, "feature_blocks"),
        ("flux", {"transformer": {"patch_size": 2}}, "patch_size=2"),
        ("flux", {"transformer": {"axes_dims_rope": [2, 2, 2]}}, "axes_dims_rope"),
        ("flux", {"transformer": {"out_channels": 3}}, "out_channels=3"),
        ("flux", {"resolution": 9}, "multiple of 2"),
        ("flux", {"guidance": -1.0}, "guidance"),
        ("flux", {"scheduler": {"_class_name": "DDIMScheduler"}}, "DDIMScheduler"),
        ("flux", {"scheduler": {"use_karras_sigmas": True}}, "use_karras_sigmas=True"),
        ("flux", {"scheduler": {"invert_sigmas": True}}, "invert_sigmas=True"),
    ],
)
def test_what_is_not_built_is_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        built(name, **options)


def test_latents_beyond_the_table_of_positions_are_refused():
    params, _, t, cond = inputs(family := built("sd3"))
    with pytest.raises(ValueError, match="table of positions"):
        family.denoiser.x0(params, np.zeros((2, 12, 8, 3), "f4"), t, cond)


def draw(random: np.random.Generator, name: str) -> dict:
    """Draw a config of any size."""
    heads, even = int(random.integers(1, 4)), 2 * int(random.integers(1, 3))
    config = {
        "joint_attention_dim": int(random.integers(3, 9)),
        "num_attention_heads": heads,
        "pooled_projection_dim": int(random.integers(3, 9)),
        "num_layers": int(random.integers(1, 4)),
    }
    if name == "flux":
        return config | {
            "attention_head_dim": even + 2 + 4,
            "axes_dims_rope": [even, 2, 4],
            "guidance_embeds": bool(random.integers(2)),
            "in_channels": 12,
            "num_single_layers": int(random.integers(1, 4)),
        }
    dual = [n for n in range(config["num_layers"]) if random.integers(2)]
    return config | {
        "attention_head_dim": 4 * even,
        "caption_projection_dim": 4 * even * heads,
        "dual_attention_layers": dual,
        "in_channels": 3,
        "out_channels": 3,
        "pos_embed_max_size": int(random.integers(4, 9)),
        "qk_norm": [None, "rms_norm"][int(random.integers(2))],
        "sample_size": 2 * int(random.integers(2, 6)),
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_any_size_are_those_of_diffusers(name, seed, tmp_path):
    torch = pytest.importorskip("torch", reason="diffusers' networks are in torch")
    diffusers = pytest.importorskip("diffusers")
    kind = {"sd3": "SD3Transformer2DModel", "flux": "FluxTransformer2DModel"}[name]
    torch.manual_seed(seed)
    theirs = getattr(diffusers, kind)(**draw(np.random.default_rng(seed), name)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    family, params = FAMILIES[name][0].read(tmp_path, resolution=8)
    _, x_t, t, cond = inputs(family)
    arrays = {"encoder_hidden_states": cond["prompt_embeds"], "pooled_projections": cond["pooled"]}
    if name == "flux":
        arrays["hidden_states"] = np.asarray(flux_tokens(x_t))
        rows, columns = np.indices((3, 4)).reshape(2, -1)
        arrays["img_ids"] = np.stack([0 * rows, rows, columns], -1).astype("f4")
        arrays["txt_ids"] = np.zeros((4, 3), "f4")
        if theirs.config.guidance_embeds:
            arrays["guidance"] = cond["guidance"] = np.array([2.0, 7.0], "f4")
    else:
        arrays["hidden_states"] = x_t.transpose(0, 3, 1, 2)
    times = np.asarray(t)
    arrays["timestep"] = times if name == "flux" else 1000 * times
    with torch.no_grad():
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
        out = theirs(**tensors).sample.numpy()
    ours = np.asarray(family.denoiser.x0(params, x_t, t, cond))
    if name == "flux":
        ours, x_t, out = flux_tokens(ours), flux_tokens(x_t), out.reshape(2, 12, -1)
    else:
        out = out.transpose(0, 2, 3, 1)
    assert relative(ours, x_t - times.reshape(2, *[1] * (x_t.ndim - 1)) * out) < 2e-5


def flux_tokens(x: np.ndarray) -> np.ndarray:
    """Return latents as FLUX's transformer takes them."""
    packed = pack(x)
    return np.asarray(packed).reshape(len(x), -1, packed.shape[-1])
