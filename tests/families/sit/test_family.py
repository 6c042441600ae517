"""SiT and DiT: their conventions, names, and what is refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax import families
from dmd2_jax.families import sit
from dmd2_jax.families.sit.transformer import ClassTransformer
from dmd2_jax.networks.guidance_embedding import GUIDANCE, at_scale, folded, scale_kernels
from dmd2_jax.networks.lora import LoraConfig, combine, lora_init, merge
from dmd2_jax.weights.state_dict import write_safetensors

GOLDEN = Path(__file__).parents[2] / "golden" / "diffusers_models" / "dit"
SMALL = {"width": 16, "depth": 3, "heads": 2, "num_classes": 5, "image_channels": 3}


def perturbed(family: sit.SitFamily, seed: int = 0):
    """Draw weights none of which is zero: a new network's last layers are."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: p + 0.1 * random.normal(size=p.shape).astype(np.float32),
        family.init(jax.random.key(seed)),
    )


def inputs(family: sit.SitFamily, seed: int = 1):
    random = np.random.default_rng(seed)
    x_t = random.normal(size=(2, *family.image_shape)).astype(np.float32)
    return x_t, jnp.asarray([1.0, 0.3]), family.cond(np.array([4, 0]))


def test_time_of_the_published_weights_runs_the_other_way() -> None:
    ours = sit.build(SMALL | {"time_scale": 1.0})
    theirs = sit.build(SMALL | {"time_scale": 1.0, "data_time": 1})
    params, (x_t, t, cond) = perturbed(ours), inputs(ours)
    velocity = (x_t - ours.denoiser.x0(params, x_t, t, cond)) / t[:, None, None, None]
    # What the network would say of 1 - t, as a velocity from noise to data.
    flipped = theirs.denoiser.x0(params, x_t, 1 - t + 1e-9, cond)
    expected = x_t + np.asarray(1 - t + 1e-9)[:, None, None, None] * velocity
    np.testing.assert_allclose(flipped, expected, rtol=1e-5, atol=1e-5)


def test_x0_is_x_t_where_no_noise_is_left() -> None:
    family = sit.build(SMALL)
    x_t, _, cond = inputs(family)
    x_0 = family.denoiser.x0(perturbed(family), x_t, jnp.zeros(2), cond)
    np.testing.assert_array_equal(x_0, x_t)


def test_images_need_not_be_square() -> None:
    family = sit.build(SMALL | {"resolution": (4, 6)})
    params, (x_t, t, cond) = perturbed(family), inputs(family)
    assert family.image_shape == (4, 6, 3)
    x_0, maps = family.denoiser.x0_and_features(params, x_t, t, cond)
    assert x_0.shape == x_t.shape and {it.shape[1:3] for it in maps} == {(2, 3)}
    # Places differ along both axes: what is turned around is another image's estimate turned.
    for axis in (1, 2):
        turned = family.denoiser.x0(params, np.flip(x_t, axis), t, cond)
        assert np.abs(np.flip(turned, axis) - x_0).max() > 1e-3


def test_null_condition_is_the_row_after_the_last_class() -> None:
    family = sit.build(SMALL)
    params, (x_t, t, cond) = perturbed(family), inputs(family)
    null = family.denoiser.null_cond(cond)
    np.testing.assert_array_equal(null, [5, 5])
    assert np.abs(
        family.denoiser.x0(params, x_t, t, cond) - family.denoiser.x0(params, x_t, t, null)
    ).max() > 1e-3  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"num_classes": 0}, {"learned_variance": True}])
def test_original_names_round_trip(tmp_path: Path, changes) -> None:
    family = sit.build(SMALL | changes)
    params = perturbed(family)
    family.save(params, tmp_path / "x.safetensors")
    jax.tree.map(np.testing.assert_array_equal, family.load(tmp_path / "x.safetensors"), params)
    names = family.tensor_shapes()
    assert names["blocks.2.attn.qkv.weight"] == (48, 16)
    assert names["x_embedder.proj.weight"] == (16, 3, 2, 2)
    assert ("y_embedder.embedding_table.weight" in names) == (family.num_classes > 0)
    assert names["final_layer.linear.bias"] == (4 * (6 if changes.get("learned_variance") else 3),)


def test_files_of_the_original_programs_and_of_repa_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = sit.build(SMALL)
    params = perturbed(family)
    tensors = family.to_state_dict(params)
    tensors["pos_embed"] = np.zeros((1, 16, 16), np.float32)
    tensors["projectors.0.0.weight"] = np.zeros((4, 16), np.float32)
    write_safetensors(tensors, tmp_path / "x.safetensors")
    jax.tree.map(np.testing.assert_array_equal, family.load(tmp_path / "x.safetensors"), params)
    assert caplog.messages == ["left out REPA's 1 tensors projectors.*, of its training alone."]


def test_features_are_the_chosen_blocks_outputs_on_their_grid() -> None:
    family = sit.build(SMALL | {"feature_blocks": (0, 2)})
    params, (x_t, t, cond) = perturbed(family), inputs(family)
    x_0, maps = family.denoiser.x0_and_features(params, x_t, t, cond)
    assert [m.shape for m in maps] == [(2, 4, 4, 16)] * 2
    np.testing.assert_array_equal(x_0, family.denoiser.x0(params, x_t, t, cond))
    for ours, alone in zip(maps, family.denoiser.features(params, x_t, t, cond), strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", [{"scan_layers": True}, {"remat": "block"}, {"remat": "full"}])
def test_loops_and_rematerialisation_change_no_number(changes) -> None:
    family = sit.build(SMALL)
    params, arguments = perturbed(family), inputs(family)

    def slope(denoiser):
        return jax.jit(jax.grad(lambda p: jnp.square(denoiser.x0(p, *arguments)).mean()))(params)

    expected, actual = slope(family.denoiser), slope(sit.build(SMALL | changes).denoiser)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), actual,
                 expected)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 9}, r"model.resolution=9, expected a multiple of model.patch=2"),
        ({"width": 18}, r"model.width=18, expected a multiple of 4 x model.heads=8"),
        ({"prediction": "v"}, r"model.prediction='v', expected"),
        ({"data_time": 2}, r"model.data_time=2, expected 0 or 1"),
        ({"depth": 0}, r"model.depth=0, expected at least 1"),
        ({"feature_blocks": (3,)}, r"model.feature_blocks=\(3,\), expected increasing numbers"),
        ({"attention": 1}, r"attention"),
        ({"num_classes": None}, r"model.num_classes=None, which means as the data have"),
    ],
)
def test_build_refuses_by_name(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sit.build(SMALL | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"_class_name": "PixArtTransformer2DModel"},
            r"'PixArtTransformer2DModel', expected one of",
        ),
        ({"norm_type": "layer_norm"}, r"norm_type='layer_norm', expected 'ada_norm_zero'"),
        ({"out_channels": 5}, r"out_channels=5, expected in_channels=4, or twice"),
    ],
)
def test_read_refuses_another_network(tmp_path: Path, changes, message: str) -> None:
    config = json.loads((GOLDEN / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        families.read(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_diffusers_networks_of_any_size_are_read(tmp_path: Path, seed: int) -> None:
    torch = pytest.importorskip("torch", reason="diffusers' network runs in torch")
    diffusers = pytest.importorskip("diffusers", reason="the network to compare with")
    random = np.random.default_rng(seed)
    heads, size, patch = (int(random.choice(it)) for it in ((1, 2, 3), (8, 12), (1, 2, 4)))
    channels, learned = int(random.choice((1, 3, 4))), bool(random.integers(2))
    torch.manual_seed(seed)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=8, in_channels=channels, num_layers=3,
        out_channels=channels * (2 if learned else 1), sample_size=size, patch_size=patch,
        num_embeds_ada_norm=7,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    family, params = families.read(tmp_path)
    x_t = random.normal(size=(2, size, size, channels)).astype(np.float32)
    t, labels = np.array([999, 31], np.int32), np.array([7, 2], np.int32)
    with torch.no_grad():
        eps = theirs(
            torch.tensor(x_t.transpose(0, 3, 1, 2)),
            timestep=torch.tensor(t),
            class_labels=torch.tensor(labels),
        ).sample[:, :channels].numpy().transpose(0, 2, 3, 1)  # fmt: skip
    alpha, sigma = (
        np.asarray(f(jnp.asarray(t)))[:, None, None, None] for f in family.denoiser.schedule[:2]
    )
    x_0 = np.asarray(family.denoiser.x0(params, x_t, t, labels))
    assert np.linalg.norm((x_t - alpha * x_0) / sigma - eps) / np.linalg.norm(eps) < 1e-5


@pytest.mark.parametrize("shared", [True, False])
def test_the_last_layer_is_told_what_the_first_block_is(shared: bool) -> None:
    """Of DiT it reads the first block's embedding, with adapters and the scale as that has them."""
    settings = {"channels": 3, "out_channels": 3, "patch": 2, "width": 16, "depth": 2, "heads": 2}
    module = ClassTransformer(**settings, num_classes=5, shared=shared)
    random = np.random.default_rng(0)
    arguments = (
        random.normal(size=(2, 8, 8, 3)).astype("f4"),
        np.array([0.3, 0.9]),
        np.array([4, 0]),
    )

    def drawn(tree):
        return jax.tree.map(lambda x: jnp.float32(0.3 * random.normal(size=x.shape)), tree)

    params = drawn(jax.eval_shape(module.init, jax.random.key(0), *arguments))
    kernels = drawn(scale_kernels(params, "timestep_embedder.linear_1"))
    told = {**params, GUIDANCE: kernels}
    lora = LoraConfig(2, 2.0, ("linear_1",))
    own = drawn(lora_init(jax.random.key(0), params, lora))
    pairs = (
        (at_scale(told, jnp.full(2, 3.0)), folded(told, 3.0)),
        (combine(params, own, lora), merge(params, own, lora)),
    )
    plain = module.apply(params, *arguments)
    for apart, whole in pairs:
        expected = module.apply(whole, *arguments)
        assert np.abs(expected - plain).max() > 0.1
        close = 1e-5 * float(np.abs(expected).max())
        for scan in (False, True):
            actual = module.clone(scan_layers=scan).apply(apart, *arguments)
            np.testing.assert_allclose(actual, expected, atol=close)
