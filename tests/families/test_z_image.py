"""Z-Image as a family: numbers recorded from diffusers, and diffusers itself where it is there.

recorded/z_image has the config of a diffusers 0.42.1 ZImageTransformer2DModel and, in torch's
layouts, what it was given and gave: latents, its own time (1 is data), the embeddings of two
prompts of `cap_lengths` tokens (torch 2.13.0, CPU). Its weights are `recipe(shapes, 7, 1.0)` of
golden/README.md.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families import z_image
from dmd2_jax.families.published.configs import Z_IMAGE
from dmd2_jax.families.z_image.transformer import _FinalLayer
from dmd2_jax.networks.lora import matching_targets
from tests.conformance.derive import apart_in_time, nhwc, recipe, relative

RECORDED = Path(__file__).parent / "recorded" / "z_image"
CONFIG = {
    "_class_name": "ZImageTransformer2DModel",
    "axes_dims": [2, 4, 2],
    "axes_lens": [80, 16, 16],
    "cap_feat_dim": 6,
    "dim": 16,
    "in_channels": 3,
    "n_heads": 2,
    "n_kv_heads": 2,
    "n_layers": 4,
    "n_refiner_layers": 1,
}
COUNTS = (5, 40)  # tokens of the two prompts, filled up to 32 and 64


def built(**options):
    """Build a small family."""
    transformer = CONFIG | options.pop("transformer", {})
    scheduler = options.pop("scheduler", {})
    given = {"transformer": transformer, "scheduler": scheduler, "resolution": 8}
    return z_image.build(given | options)


def condition(width: int, tokens: int = 64) -> dict[str, np.ndarray]:
    """Draw the condition of two prompts of unequal lengths."""
    embeds = np.random.default_rng(1).normal(size=(2, tokens, width)).astype("f4")
    mask = (np.arange(tokens) < np.array(COUNTS)[:, None]).astype("f4")
    return {"prompt_embeds": embeds, "prompt_mask": mask}


def inputs(family, height: int = 6, width: int = 8):
    """Draw (params, x_t, t, cond); every weight is random, so that no layer is trivial."""
    random = np.random.default_rng(0)
    params = family.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape).astype("f4"), params)
    x_t = random.normal(size=(2, height, width, family.image_shape[-1])).astype("f4")
    cond = condition(family.model.config["cap_feat_dim"])
    return params, x_t, jnp.asarray([1.0, 0.3]), cond


@pytest.fixture(scope="module")
def recorded():
    """Return (the recorded network, its tensors, the arrays)."""
    family = z_image.open_folder(RECORDED, resolution=(8, 6))
    tensors = recipe(family.tensor_shapes(), 7, 1.0)
    return family, tensors, dict(np.load(RECORDED / "recorded.npz"))


def test_x0_is_that_of_the_recorded_prediction(recorded):
    family, tensors, arrays = recorded
    x_t, out = (np.asarray(nhwc(arrays[name])) for name in ("hidden_states", "out"))
    mask = np.arange(arrays["cap_feats"].shape[1]) < arrays["cap_lengths"][:, None]
    cond = {"prompt_embeds": arrays["cap_feats"], "prompt_mask": mask.astype("f4")}
    t = 1.0 - arrays["t"]
    actual = np.asarray(family.denoiser.x0(family.from_state_dict(tensors), x_t, t, cond))
    # Its own time runs from noise to data, and its prediction is x_0 - eps.
    times = t[:, None, None, None]
    assert relative(actual, x_t + times * out) < 1e-5
    assert relative((actual - x_t) / times, out) < 1e-5


def test_an_optimised_program_rounds_times_as_diffusers_does():
    """The tests' own programs are not optimised; one that is may fuse 1000 - 1000 t and more."""
    family, random, n = built(), np.random.default_rng(0), 16
    x_t = random.normal(size=(n, 8, 8, 3)).astype("f4")
    t = random.uniform(0.05, 1, n).astype("f4")
    embeds = random.normal(size=(n, 32, 6)).astype("f4")
    cond = {"prompt_embeds": embeds, "prompt_mask": np.ones((n, 32), "f4")}
    given = (family.from_state_dict(recipe(family.tensor_shapes(), 7, 1.0)), x_t, t, cond)
    lowered = family.denoiser.x0.lower(*given)
    level = "xla_backend_optimization_level"
    plain, optimised = (
        np.asarray(lowered.compile(compiler_options={level: it})(*given)) for it in (0, 3)
    )
    for one, other in zip(plain, optimised, strict=True):
        assert relative(other, one) < 2e-6


def test_weights_go_out_as_they_came_in(recorded):
    family, expected, _ = recorded
    actual = family.to_state_dict(family.from_state_dict(expected))
    assert sorted(actual) == sorted(expected)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)


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


def test_bfloat16_is_close_to_float32_and_leaves_times_alone():
    arguments = inputs(plain := built())
    params, x_t, _, cond = arguments
    rounded = built(dtype="bfloat16")
    assert apart_in_time(rounded, params, x_t, cond) > 1e-3
    actual = rounded.denoiser.x0(*arguments)
    assert actual.dtype == jnp.float32
    assert 1e-6 < relative(actual, plain.denoiser.x0(*arguments)) < 0.03


def test_prompt_gives_one_image_however_far_it_is_filled_up():
    params, x_t, t, cond = inputs(family := built())
    expected = family.denoiser.x0(params, x_t[:1], t[:1], {k: v[:1] for k, v in cond.items()})
    short = {name: array[:1, :32] for name, array in cond.items()}
    assert relative(family.denoiser.x0(params, x_t[:1], t[:1], short), expected) < 1e-6
    # What fills it up to 32 is read: learned tokens, not what stands there.
    other = cond["prompt_embeds"].copy()
    other[0, COUNTS[0] :] = 9.0
    same = {"prompt_embeds": other[:1], "prompt_mask": cond["prompt_mask"][:1]}
    np.testing.assert_array_equal(family.denoiser.x0(params, x_t[:1], t[:1], same), expected)
    params["params"]["cap_pad_token"]["embedding"] += 1.0
    assert relative(family.denoiser.x0(params, x_t[:1], t[:1], same), expected) > 1e-3


def test_gradients_reach_every_weight_and_are_finite():
    params, x_t, t, cond = inputs(family := built())
    loss = jax.grad(lambda p: jnp.square(family.denoiser.x0(p, x_t, t, cond)).mean())
    for path, leaf in jax.tree_util.tree_leaves_with_path(loss(params)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_null_condition_is_the_empty_prompts_with_its_mask():
    family, cond = built(), condition(6)
    null = {"prompt_embeds": np.ones((1, 64, 6), "f4"), "prompt_mask": np.eye(64, dtype="f4")[:1]}
    twin = family.with_null(null).denoiser.null_cond(cond)
    np.testing.assert_array_equal(twin["prompt_mask"].sum(1), [1, 1])
    np.testing.assert_array_equal(twin["prompt_embeds"], np.ones((2, 64, 6)))
    with pytest.raises(ValueError, match="prompt_mask"):
        family.with_null({"prompt_embeds": null["prompt_embeds"]})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt_mask": None}, r"expected a dict of \['prompt_embeds', 'prompt_mask'\]"),
        ({"prompt_mask": np.ones((2, 32), "f4")}, r"prompt_mask \[2, 32\]"),
        ({"prompt_embeds": np.ones((2, 64, 7), "f4")}, "prompt_embeds of width 7"),
        ({name: array[:, :40] for name, array in condition(6).items()}, "40 tokens"),
        (condition(6, 96), r"96 tokens and latents of 6 x 8 need \[98, 3, 4\] places"),
    ],
)
def test_condition_that_does_not_fit_is_refused_by_name(change, message):
    params, x_t, t, cond = inputs(family := built())
    given = {name: array for name, array in (cond | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        family.denoiser.x0(params, x_t, t, given)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"transformer": {"_class_name": "Lumina2Transformer2DModel"}}, "Lumina2Transformer"),
        ({"transformer": {"siglip_feat_dim": 1152}}, "siglip_feat_dim=1152, expected None"),
        ({"transformer": {"all_patch_size": [4]}}, r"all_patch_size=\[4\]"),
        ({"transformer": {"all_patch_size": [2, 4]}}, r"all_patch_size=\[2, 4\]"),
        ({"transformer": {"n_kv_heads": 1}}, "n_kv_heads=1"),
        ({"transformer": {"axes_dims": [2, 2, 2]}}, "axes_dims"),
        ({"transformer": {"cross_attention": 3}}, "cross_attention=3 is no setting"),
        ({"resolution": 7}, "multiple of 2"),
        ({"feature_blocks": (9,)}, "feature_blocks"),
        ({"scheduler": {"_class_name": "DDIMScheduler"}}, "DDIMScheduler"),
    ],
)
def test_what_is_not_built_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        built(**options)


def test_angles_are_rounded_before_they_turn():
    """Of place 802, by diffusers 0.42.1's RopeEmbedder; without rounding the first is -0.04215."""
    module = z_image.build({"pipeline": "published:z_image"}).model.module
    (cosines,), (sines,) = module._turned(0, np.array([802]))
    for found, expected in (
        (cosines, [-0.04212293, 0.69205385, -0.91979724]),
        (sines, [0.9991124, 0.72184587, -0.39239404]),
    ):
        np.testing.assert_allclose(found[[1, 3, 5]], expected, atol=3e-7)


def test_final_norm_adds_1e_6_and_the_others_1e_5():
    x = np.array([[[1e-3, -1e-3]]], "f4")  # of variance 1e-6
    layer, condition = _FinalLayer(2, jnp.float32), np.zeros((1, 2), "f4")
    maps = {"adaLN_modulation_1": np.zeros((2, 2)), "linear": np.eye(2)}
    params = {name: {"kernel": it, "bias": np.zeros(2)} for name, it in maps.items()}
    out = layer.apply({"params": params}, x, condition)
    np.testing.assert_allclose(out[0, 0], [0.5**0.5, -(0.5**0.5)], rtol=1e-5)
    bare = {key: value for key, value in Z_IMAGE.items() if key != "norm_eps"}
    assert z_image.build({"transformer": bare, "scheduler": {}}).model.module.eps == 1e-5


def draw(random: np.random.Generator) -> dict:
    """Draw a config of any size."""
    axes = [2 * int(random.integers(1, 3)) for _ in range(3)]
    heads = int(random.integers(1, 4))
    return {
        "axes_dims": axes,
        "axes_lens": [80, 16, 16],
        "cap_feat_dim": int(random.integers(3, 9)),
        "dim": sum(axes) * heads,
        "in_channels": int(random.integers(2, 5)),
        "n_heads": heads,
        "n_kv_heads": heads,
        "n_layers": int(random.integers(1, 4)),
        "n_refiner_layers": int(random.integers(1, 3)),
        "norm_eps": float(random.choice([1e-5, 1e-3])),
        "qk_norm": bool(random.integers(2)),
        "rope_theta": float(random.choice([256.0, 100.0])),
        "t_scale": float(random.choice([1000.0, 100.0])),
    }


@pytest.mark.parametrize("seed", range(3))
def test_networks_of_any_size_are_those_of_diffusers(seed, tmp_path):
    torch = pytest.importorskip("torch", reason="diffusers' networks are in torch")
    diffusers = pytest.importorskip("diffusers", reason="it is what is compared with")
    torch.manual_seed(seed)
    theirs = diffusers.ZImageTransformer2DModel(**draw(np.random.default_rng(seed))).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    family, params = z_image.read(tmp_path, resolution=8)
    _, x_t, t, cond = inputs(family, *((6, 8) if seed else (8, 16)))
    times = np.asarray(t)
    with torch.no_grad():
        latents = [torch.from_numpy(x.transpose(2, 0, 1)[:, None].copy()) for x in x_t]
        embeds = zip(cond["prompt_embeds"], COUNTS, strict=True)
        prompts = [torch.from_numpy(x[:n].copy()) for x, n in embeds]
        out = theirs(latents, torch.from_numpy(1 - times), prompts, return_dict=False)[0]
    raw = np.stack([x.numpy()[:, 0].transpose(1, 2, 0) for x in out])
    ours = np.asarray(family.denoiser.x0(params, x_t, t, cond))
    assert relative(ours, x_t + times[:, None, None, None] * raw) < 1e-5
