"""The Stable Diffusion family: predictions, conditions, files, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.families.published import configs as published_configs
from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from tests.families import tiny_models
from tests.families.published.test_scheduler import SD15 as SCHEDULER


def build(unet=tiny_models.UNET, prediction="epsilon", **changes):
    schedule = SCHEDULER | {"prediction_type": prediction}
    return stable_diffusion.build({"unet": unet, "scheduler": schedule, **changes})


def weights(family):
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * random.standard_normal(leaf.shape), jnp.float32),
        family.param_shapes(),
    )


def inputs(family, batch=2):
    """Return (x_t, t, cond), no two samples alike."""
    random = np.random.default_rng(1)
    shapes = ((batch, *family.image_shape), family.cond_shapes(batch, tokens=3))
    x_t, cond = jax.tree.map(
        lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), jnp.float32),
        (jax.ShapeDtypeStruct(shapes[0], jnp.float32), shapes[1]),
    )
    return x_t, jnp.asarray([999, 20], jnp.int32)[:batch], cond


def test_x0_is_the_networks_prediction_converted():
    families = {kind: build(prediction=kind) for kind in ("epsilon", "v_prediction", "sample")}
    family = families["epsilon"]
    params, (x_t, t, cond) = weights(family), inputs(family)

    def run(params, x_t, t, cond):
        raw = family.model.module.apply(params, x_t, t.astype(float), cond["prompt_embeds"])
        return raw, {k: f.denoiser.x0(params, x_t, t, cond) for k, f in families.items()}

    raw, x_0 = jax.jit(run)(params, x_t, t, cond)
    assert float(jnp.std(raw)) > 0.1
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    squared = np.cumprod(1 - beta)[np.asarray(t)][:, None, None, None]
    alpha, sigma = np.sqrt(squared), np.sqrt(1 - squared)
    x_t, raw = np.asarray(x_t, np.float64), np.asarray(raw, np.float64)
    np.testing.assert_allclose(x_0["epsilon"], (x_t - sigma * raw) / alpha, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x_0["v_prediction"], alpha * x_t - sigma * raw, atol=1e-5)
    np.testing.assert_allclose(x_0["sample"], raw, atol=1e-6)


def test_x0_and_features_equal_x0_and_features_apart():
    family = build(tiny_models.SDXL_UNET)
    denoiser, args = family.denoiser, (weights(family), *inputs(family))

    def run(*args):
        return denoiser.x0_and_features(*args), denoiser.x0(*args), denoiser.features(*args)

    both, x_0, features = jax.jit(run)(*args)
    np.testing.assert_allclose(both[0], x_0, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both[1][0], features[0], rtol=1e-4, atol=1e-5)
    (shape,) = family.feature_shapes(2)
    assert shape.shape == features[0].shape == (2, 4, 4, 16)


def test_guidance_goes_away_from_the_negative_prompt():
    # w = 0 is the unconditional prediction: x_0 of the negative prompt itself.
    family = build()
    params, (x_t, t, cond) = weights(family), inputs(family)
    swapped = cond | {"prompt_embeds": cond["negative_prompt_embeds"]}

    def run(params, x_t, t, cond, swapped):
        unguided = family.denoiser.x0(params, x_t, t, swapped)
        return guided_x0(family.denoiser, 0.0)(params, x_t, t, cond), unguided

    guided, expected = jax.jit(run)(params, x_t, t, cond, swapped)
    np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=1e-4)


def test_null_cond_of_sdxl_is_zeros_with_the_same_sizes():
    family = build(tiny_models.SDXL_UNET)
    _, _, cond = inputs(family)
    null = family.denoiser.null_cond(cond)
    assert not null["prompt_embeds"].any()
    assert not null["pooled"].any()
    np.testing.assert_array_equal(null["time_ids"], cond["time_ids"])


def test_null_cond_of_sdxl_takes_negative_embeddings_where_given():
    family = build(tiny_models.SDXL_UNET)
    _, _, cond = inputs(family)
    cond |= {"negative_prompt_embeds": cond["prompt_embeds"] + 1, "negative_pooled": cond["pooled"]}
    null = family.denoiser.null_cond(cond)
    np.testing.assert_array_equal(null["prompt_embeds"], cond["negative_prompt_embeds"])
    np.testing.assert_array_equal(null["pooled"], cond["negative_pooled"])
    assert jax.tree.structure(null) == jax.tree.structure(cond)


def test_with_negative_gives_every_sample_the_same_negative_prompt():
    family = build(tiny_models.SDXL_UNET)
    _, _, cond = inputs(family)
    null = {"prompt_embeds": 2 * cond["prompt_embeds"][:1], "pooled": 3 * cond["pooled"][:1]}
    got = family.denoiser.null_cond(stable_diffusion.with_negative(cond, null))
    for name in null:
        np.testing.assert_array_equal(got[name], np.repeat(null[name], 2, axis=0))
    np.testing.assert_array_equal(got["time_ids"], cond["time_ids"])


def test_cond_makes_float32_of_stored_embeddings():
    stored = {"prompt_embeds": np.array([[[1.5]]], np.float16)}
    cond = build().cond(stored)
    assert cond["prompt_embeds"].dtype == jnp.float32
    np.testing.assert_array_equal(cond["prompt_embeds"], [[[1.5]]])


def test_with_null_is_what_guidance_goes_away_from():
    family = build()
    cond = inputs(family)[2]
    null = {"prompt_embeds": 2 * cond["prompt_embeds"][:1]}
    expected = np.repeat(null["prompt_embeds"], len(cond["prompt_embeds"]), axis=0)
    del cond["negative_prompt_embeds"]
    got = family.with_null(null).denoiser.null_cond(cond)
    np.testing.assert_array_equal(got["prompt_embeds"], expected)


def test_with_null_yields_to_a_negative_prompt():
    family = build()
    cond = inputs(family)[2]
    null = {"prompt_embeds": 2 * cond["prompt_embeds"][:1]}
    got = family.with_null(null).denoiser.null_cond(cond)
    np.testing.assert_array_equal(got["prompt_embeds"], cond["negative_prompt_embeds"])


def test_with_null_refuses_the_embedding_of_other_text_encoders():
    family = build()
    with pytest.raises(ValueError, match="prompt_embeds of width 3, expected width"):
        family.with_null({"prompt_embeds": np.zeros((1, 5, 3))})
    with pytest.raises(ValueError, match="no pooled for this U-Net"):
        family.with_null(
            {"prompt_embeds": np.zeros((1, 5, family.model.module.context_dim)), "pooled": 0}
        )


def test_null_cond_of_sd15_wants_the_empty_prompt():
    family = build()
    _, _, cond = inputs(family)
    del cond["negative_prompt_embeds"]
    with pytest.raises(ValueError, match="expected negative_prompt_embeds among them"):
        family.denoiser.null_cond(cond)


@pytest.mark.parametrize("change", [{"pooled": None}, {"labels": jnp.zeros(2)}])
def test_x0_refuses_another_condition(change):
    family = build(tiny_models.SDXL_UNET)
    x_t, t, cond = inputs(family)
    cond = {key: value for key, value in (cond | change).items() if value is not None}
    with pytest.raises(ValueError, match=r"expected a dict of \['pooled', 'prompt_embeds'"):
        jax.eval_shape(family.denoiser.x0, family.param_shapes(), x_t, t, cond)


def test_x0_refuses_no_condition():
    family = build()
    x_t, t, _ = inputs(family)
    with pytest.raises(ValueError, match="cond is NoneType, expected a dict"):
        jax.eval_shape(family.denoiser.x0, family.param_shapes(), x_t, t, None)


def test_x0_stays_float32_in_bfloat16():
    family = build(dtype="bfloat16")
    shapes = jax.eval_shape(family.denoiser.x0_and_features, family.param_shapes(), *inputs(family))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


def test_cond_shapes_of_sdxl_are_the_published_ones():
    family = build(published_configs.SDXL_UNET)
    shapes = {key: leaf.shape for key, leaf in family.cond_shapes(2).items()}
    assert shapes == {"prompt_embeds": (2, 77, 2048), "pooled": (2, 1280), "time_ids": (2, 6)}
    assert family.image_shape == (128, 128, 4)


def test_feature_shapes_of_sd15_are_those_of_the_official_head():
    assert build(published_configs.SD15_UNET).feature_shapes(1)[0].shape == (1, 8, 8, 1280)


def test_init_draws_weights_of_the_right_shapes():
    family = build(tiny_models.SDXL_UNET)
    shapes = jax.tree.map(jnp.shape, family.init(jax.random.key(0)))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, family.param_shapes())


@pytest.fixture
def pipeline(tmp_path):
    """Return a pipeline folder's U-Net and scheduler, with the family and weights they are of."""
    family = build(resolution=16)
    params = weights(family)
    family.save(params, tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return tmp_path, family, params


def test_read_returns_what_was_saved(pipeline):
    folder, family, params = pipeline
    read, again = stable_diffusion.read(folder, resolution=16)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert read.model == family.model
    assert read.image_shape == family.image_shape == (16, 16, 4)


def test_build_takes_a_folder_that_is_called_as_the_published_shapes(pipeline, monkeypatch, capsys):
    """Its diffusion may be another one, as that of a finetune."""
    folder, family, _ = pipeline
    folder.rename(folder.parent / "sdxl")
    monkeypatch.chdir(folder.parent)
    for name, shapes in (("sdxl", family), ("./sdxl", family)):
        built = stable_diffusion.build({"pipeline": name, "resolution": 16})
        assert built.tensor_shapes() == shapes.tensor_shapes()
    assert "sdxl is taken, not the published shapes" in capsys.readouterr().err
    published = stable_diffusion.build({"pipeline": "published:sdxl", "resolution": 128})
    assert published.is_sdxl and not family.is_sdxl
    # A folder that is no pipeline takes nothing.
    (folder.parent / "sd15").mkdir()
    assert len(stable_diffusion.build({"pipeline": "sd15"}).tensor_shapes()) == 686


def test_load_reads_a_file_a_unet_and_a_pipeline(pipeline):
    folder, family, params = pipeline
    family.save(params, folder / "student.safetensors")
    for path in (folder, folder / "unet", folder / "student.safetensors"):
        jax.tree.map(np.testing.assert_array_equal, family.load(path), params)


def test_load_names_the_file_of_another_network(pipeline):
    folder, _, _ = pipeline
    with pytest.raises(ValueError, match=r"(?s)unet: .*add_embedding"):
        build(tiny_models.SDXL_UNET).load(folder / "unet")


def test_read_names_the_missing_part(pipeline):
    folder, _, _ = pipeline
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match=r"scheduler_config.json cannot be read"):
        stable_diffusion.read(folder)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"unet": None}, "model.unet=None, expected what a U-Net's config.json holds"),
        ({"pipeline": "nowhere"}, "model.pipeline='nowhere' is no folder, expected"),
        ({"unet": tiny_models.VAE}, "expected 'UNet2DConditionModel'"),
        ({"unet": tiny_models.UNET, "dtype": "float16"}, "model.dtype='float16', expected one of"),
        ({"unet": tiny_models.UNET, "resolution": 7}, "side is 7, expected a multiple of 2"),
        ({"unet": tiny_models.UNET | {"in_channels": 9}}, "in_channels=9, expected out_channels=4"),
    ],
)
def test_build_refuses_what_it_cannot_build(model, message):
    with pytest.raises(ValueError, match=message):
        stable_diffusion.build({"scheduler": SCHEDULER, **model})
