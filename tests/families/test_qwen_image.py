"""Qwen-Image as a family: numbers recorded from diffusers, and diffusers itself where it is there.

recorded/qwen_image has the config of a diffusers 0.42.1 QwenImageTransformer2DModel and, in torch's
layouts, what it was given and gave: latents, a time, the embeddings of two prompts of
`prompt_lengths` tokens (torch 2.13.0, CPU). Its weights are `recipe(shapes, 7, 1.0)` of
golden/README.md. vae.json and the other arrays: tests/networks/test_vae_video.py.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.families import qwen_image
from dmd2_jax.families.published.configs import QWEN_IMAGE_SCHEDULER
from dmd2_jax.families.published.flow_scheduler import flow_times
from dmd2_jax.networks.lora import matching_targets
from dmd2_jax.networks.packing import pack
from tests.conformance.derive import apart_in_time, nhwc, recipe, relative

RECORDED = Path(__file__).parent / "recorded" / "qwen_image"
CONFIG = {
    "_class_name": "QwenImageTransformer2DModel",
    "attention_head_dim": 8,
    "axes_dims_rope": [2, 4, 2],
    "in_channels": 12,
    "joint_attention_dim": 6,
    "num_attention_heads": 2,
    "num_layers": 2,
    "out_channels": 3,
}
COUNTS = (5, 8)  # tokens of the two prompts, filled up to 8


def built(**options):
    """Build a small family."""
    transformer = CONFIG | options.pop("transformer", {})
    scheduler = options.pop("scheduler", {})
    given = {"transformer": transformer, "scheduler": scheduler, "resolution": (6, 8)}
    return qwen_image.build(given | options)


def condition(width: int, tokens: int = 8) -> dict[str, np.ndarray]:
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
    cond = condition(family.model.config["joint_attention_dim"])
    return params, x_t, jnp.asarray([1.0, 0.3]), cond


@pytest.fixture(scope="module")
def drawn():
    """Return (a small family, what its denoiser is given, its x_0 and features)."""
    family = built()
    arguments = inputs(family)
    return family, arguments, family.denoiser.x0_and_features(*arguments)


@pytest.fixture(scope="module")
def recorded():
    """Return (the recorded network, its tensors, the arrays)."""
    family = qwen_image.open_folder(RECORDED, resolution=(6, 10))
    tensors = recipe(family.tensor_shapes(), 7, 1.0)
    return family, tensors, dict(np.load(RECORDED / "recorded.npz"))


def test_x0_is_that_of_the_recorded_prediction(recorded):
    family, tensors, arrays = recorded
    x_t, out = (np.asarray(nhwc(arrays[name])) for name in ("hidden_states", "out"))
    embeds, t = arrays["prompt_embeds"], arrays["t"]
    mask = np.arange(embeds.shape[1]) < arrays["prompt_lengths"][:, None]
    cond = {"prompt_embeds": embeds, "prompt_mask": mask.astype("f4")}
    actual = np.asarray(family.denoiser.x0(family.from_state_dict(tensors), x_t, t, cond))
    times = t[:, None, None, None]
    assert relative(actual, x_t - times * out) < 1e-5
    assert relative((x_t - actual) / times, out) < 1e-5


def test_weights_go_out_as_they_came_in(recorded):
    family, expected, _ = recorded
    actual = family.to_state_dict(family.from_state_dict(expected))
    assert sorted(actual) == sorted(expected)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)


def test_adapters_are_for_attention_and_mlps():
    family = built()
    targets = matching_targets(family.param_shapes(), family.lora_targets, family.tensor_name)
    assert targets == family.lora_targets


def test_all_ways_to_compute_agree(drawn):
    _, arguments, (expected, maps) = drawn
    assert [m.shape for m in maps] == [(2, 3, 4, 16)]
    other = built(scan_layers=True, remat="full", feature_blocks=(1,)).denoiser
    got, (features,) = other.x0_and_features(*arguments)
    assert relative(got, expected) < 1e-5 and relative(features, maps[0]) < 1e-5


def test_bfloat16_is_close_to_float32_and_leaves_times_alone(drawn):
    _, arguments, (expected, _) = drawn
    params, x_t, _, cond = arguments
    rounded = built(dtype="bfloat16")
    assert apart_in_time(rounded, params, x_t, cond) > 1e-3
    actual = rounded.denoiser.x0(*arguments)
    assert actual.dtype == jnp.float32
    assert 1e-6 < relative(actual, expected) < 0.03


def test_prompt_gives_one_image_whatever_it_is_filled_up_with(drawn):
    family, (params, x_t, t, cond), (expected, _) = drawn
    other = cond["prompt_embeds"].copy()
    other[0, COUNTS[0] :] = 9.0
    # To the bit in the same program: masked keys weigh nothing.
    again = family.denoiser.x0_and_features(params, x_t, t, cond | {"prompt_embeds": other})[0]
    np.testing.assert_array_equal(again[0], expected[0])
    short = {name: array[:1, : COUNTS[0]] for name, array in cond.items()}
    assert relative(family.denoiser.x0(params, x_t[:1], t[:1], short), expected[:1]) < 1e-6
    other[0, COUNTS[0] - 1] = 9.0
    again = family.denoiser.x0_and_features(params, x_t, t, cond | {"prompt_embeds": other})[0]
    assert relative(again[0], expected[0]) > 1e-3


def test_gradients_reach_every_weight_and_are_finite(drawn):
    family, (params, x_t, t, cond), _ = drawn
    loss = jax.grad(lambda p: jnp.square(family.denoiser.x0(p, x_t, t, cond)).mean())
    ends = ("to_add_out", "ff_context", "add_q_proj", "norm_added_q")
    for path, leaf in jax.tree_util.tree_leaves_with_path(loss(params)):
        # What the last block writes of the prompt nobody reads, in the published network too.
        unread = "transformer_blocks_1" in str(path) and any(end in str(path) for end in ends)
        assert np.isfinite(leaf).all() and (np.abs(leaf).max() > 0) != unread, path


def test_null_condition_is_the_empty_prompts_with_its_mask():
    family, cond = built(), condition(6)
    null = {"prompt_embeds": np.ones((1, 8, 6), "f4"), "prompt_mask": np.eye(8, dtype="f4")[:1]}
    twin = family.with_null(null).denoiser.null_cond(cond)
    np.testing.assert_array_equal(twin["prompt_mask"].sum(1), [1, 1])
    np.testing.assert_array_equal(twin["prompt_embeds"], np.ones((2, 8, 6)))
    with pytest.raises(ValueError, match="prompt_mask"):
        family.with_null({"prompt_embeds": null["prompt_embeds"]})


def test_guidance_has_the_length_of_the_conditional_flow_in_each_token(drawn):
    family, (params, x_t, t, cond), (c, _) = drawn
    negative = {f"negative_{name}": np.flip(array, 0).copy() for name, array in cond.items()}
    u = family.denoiser.x0_and_features(params, x_t, t, family.denoiser.null_cond(cond | negative))
    times = np.asarray(t)[:, None, None, None]
    v_c, v_u = ((x_t - np.asarray(x_0)) / times for x_0 in (c, u[0]))
    combined = pack(v_u + 3.0 * (v_c - v_u))
    factor = np.linalg.norm(pack(v_c), axis=-1) / np.linalg.norm(combined, axis=-1)
    assert np.abs(factor - 1).max() > 0.05
    x_t, both = jnp.asarray(x_t), family.cond(cond | negative)
    actual = guided_x0(family.denoiser, 3.0)(params, x_t, t, both)
    expected = np.asarray(combined) * factor[..., None]
    assert relative(pack((x_t - np.asarray(actual)) / times), expected) < 1e-5
    # Without guidance it is the network's own x_0, and where both agree nothing is divided by 0.
    assert guided_x0(family.denoiser, 1.0) is family.denoiser.x0
    guide = family.denoiser.guide
    np.testing.assert_allclose(guide(c, c, 3.0, x_t), c, rtol=1e-5, atol=1e-6)
    assert np.isfinite(guide(x_t, x_t, 3.0, x_t)).all()


def test_last_sigma_is_moved_and_a_single_step_stays():
    times = flow_times(QWEN_IMAGE_SCHEDULER, 4, tokens=256)
    shifted = np.exp(0.5) * np.array([1, 0.75, 0.5, 0.25])
    shifted /= 1 + (np.exp(0.5) - 1) * np.array([1, 0.75, 0.5, 0.25])
    expected = 1 - (1 - shifted) * 0.98 / (1 - shifted[-1])
    np.testing.assert_allclose(times, [*expected, 0.0], rtol=1e-12)
    assert times[-2] == pytest.approx(0.02)
    np.testing.assert_array_equal(flow_times(QWEN_IMAGE_SCHEDULER, 1, tokens=256), [1.0, 0.0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt_mask": None}, r"expected a dict of \['prompt_embeds', 'prompt_mask'\]"),
        ({"prompt_mask": np.ones((2, 5), "f4")}, r"prompt_mask \[2, 5\]"),
        ({"prompt_embeds": np.ones((2, 8, 7), "f4")}, "prompt_embeds of width 7"),
        (condition(6, 4096), "prompts of 4096 tokens need 4098 places, expected at most 4096"),
    ],
)
def test_condition_that_does_not_fit_is_refused_by_name(change, message, drawn):
    family, (params, x_t, t, cond), _ = drawn
    given = {name: array for name, array in (cond | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        family.denoiser.x0(params, x_t, t, given)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"transformer": {"_class_name": "FluxTransformer2DModel"}}, "FluxTransformer2DModel"),
        ({"transformer": {"zero_cond_t": True}}, "zero_cond_t=True, expected False"),
        ({"transformer": {"use_layer3d_rope": True}}, "use_layer3d_rope=True, expected False"),
        ({"transformer": {"use_additional_t_cond": True}}, "use_additional_t_cond=True"),
        ({"transformer": {"guidance_embeds": True}}, "guidance_embeds=True, expected False"),
        ({"transformer": {"patch_size": 1}}, "patch_size=1, expected 2"),
        ({"transformer": {"in_channels": 24}}, "in_channels=24 with out_channels=3"),
        ({"transformer": {"axes_dims_rope": [2, 2, 2]}}, r"axes_dims_rope=\[2, 2, 2\]"),
        ({"transformer": {"cross_attention": 3}}, "cross_attention=3 is no setting"),
        ({"resolution": 7}, "multiple of 2"),
        ({"feature_blocks": (9,)}, "feature_blocks"),
        ({"scheduler": {"_class_name": "DDIMScheduler"}}, "DDIMScheduler"),
        ({"scheduler": {"shift_terminal": "0.02"}}, "shift_terminal='0.02'"),
    ],
)
def test_what_is_not_built_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        built(**options)


def test_angles_are_float32_as_the_published_network_has_them():
    """Of token 475 beside 64 x 64 patches, by diffusers 0.42.1's QwenEmbedRope.

    Angles of float64 are 3e-5 away, and its exponents' own rounding 2e-6.
    """
    module = qwen_image.build({"pipeline": "published:qwen_image"}).model.module
    cosines, sines = (table[475, [1, 9, 10]] for table in module._rotary(512, (64, 64)))
    np.testing.assert_allclose(cosines, [-0.99436146, 0.8978661, 0.27284417], atol=4e-6)
    np.testing.assert_allclose(sines, [-0.10604378, 0.44026873, -0.96205825], atol=4e-6)


def draw(random: np.random.Generator) -> dict:
    """Draw a config of any size."""
    axes = [2 * int(random.integers(1, 3)) for _ in range(3)]
    channels = int(random.integers(2, 5))
    return {
        "attention_head_dim": sum(axes),
        "axes_dims_rope": axes,
        "in_channels": 4 * channels,
        "joint_attention_dim": int(random.integers(3, 9)),
        "num_attention_heads": int(random.integers(1, 4)),
        "num_layers": int(random.integers(1, 3)),
        "out_channels": channels,
    }


@pytest.mark.parametrize("seed, size", [(0, (2, 8)), (1, (6, 10)), (2, (10, 4))])
def test_networks_of_any_size_are_those_of_diffusers(seed, size, tmp_path):
    torch = pytest.importorskip("torch", reason="diffusers' networks are in torch")
    diffusers = pytest.importorskip("diffusers", reason="it is what is compared with")
    torch.manual_seed(seed)
    theirs = diffusers.QwenImageTransformer2DModel(**draw(np.random.default_rng(seed))).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    family, params = qwen_image.read(tmp_path, resolution=size)
    _, x_t, t, cond = inputs(family, *size)
    times = np.asarray(t)
    with torch.no_grad():
        tokens = np.array(pack(x_t)).reshape(2, -1, 4 * x_t.shape[-1])
        out = theirs(
            torch.from_numpy(tokens),
            timestep=torch.from_numpy(times.copy()),
            encoder_hidden_states=torch.from_numpy(cond["prompt_embeds"]),
            encoder_hidden_states_mask=torch.from_numpy(cond["prompt_mask"]).long(),
            img_shapes=[[(1, size[0] // 2, size[1] // 2)]] * 2,
            return_dict=False,
        )[0]
    ours = (x_t - np.asarray(family.denoiser.x0(params, x_t, t, cond))) / times[:, None, None, None]
    assert relative(np.asarray(pack(ours)).reshape(out.shape), out.numpy()) < 1e-5
