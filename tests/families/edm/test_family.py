import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dmd2_jax import families
from dmd2_jax.config import defaults
from dmd2_jax.config.recorded import translated
from dmd2_jax.denoiser import trainable_mask
from dmd2_jax.families.edm import family as edm

SCHEDULE = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "num_levels": 10}
NCSNPP = {
    "network": "song",
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
    "channel_mult_noise": 2,
}


def build(**changes):
    config = defaults.get_config()
    config.model.model_channels = 8
    if changes.get("network") != "song":  # 8 channels are no head of adm
        config.model.attention_resolutions = ()
    config.model.image_channels, config.model.num_classes = 1, 10
    return edm.build({**config.model, **SCHEDULE, **changes})


def perturbed(family):
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda p: p + 0.1 * random.standard_normal(p.shape, np.float32),
        family.init(jax.random.key(0)),
    )


def sample(family, batch=2):
    x = np.random.default_rng(0).standard_normal((batch, *family.image_shape))
    labels = np.eye(family.num_classes)[np.arange(batch)] if family.num_classes else None
    t = np.geomspace(0.1, 40.0, batch)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (x, t, labels))


@pytest.mark.parametrize("changes", [{}, NCSNPP], ids=["adm", "ncsnpp"])
def test_x0_and_features_equal_x0_and_features_apart(changes):
    family = build(**changes)
    params, args = perturbed(family), sample(family)
    x0, (features,) = family.denoiser.x0_and_features(params, *args)
    np.testing.assert_allclose(x0, family.denoiser.x0(params, *args), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        features, family.denoiser.features(params, *args)[0], rtol=1e-5, atol=1e-6
    )
    assert family.feature_shapes(2)[0].shape == features.shape == (2, 4, 4, 16)


def test_x0_of_initial_weights_is_the_skip_connection():
    # The output convolution starts at zero: D = c_skip x.
    family = build()
    x, t, labels = sample(family)
    x0 = family.denoiser.x0(family.init(jax.random.key(0)), x, t, labels)
    c_skip = 0.25 / (t**2 + 0.25)
    np.testing.assert_allclose(x0, c_skip[:, None, None, None] * x, rtol=1e-6)


def test_x0_takes_one_scalar_sigma():
    family = build()
    params, (x, _, labels) = perturbed(family), sample(family)
    np.testing.assert_array_equal(
        family.denoiser.x0(params, x, jnp.float32(2.5), labels),
        family.denoiser.x0(params, x, jnp.full(2, 2.5), labels),
    )


def test_x0_stays_float32_in_bfloat16():
    family = build(dtype="bfloat16")
    x0, features = jax.eval_shape(
        family.denoiser.x0_and_features, family.param_shapes(), *sample(family)
    )
    leaves = jax.tree.leaves((x0, features, family.param_shapes()))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


def test_x0_refuses_images_of_another_shape():
    family = build()
    x, t, labels = sample(family)
    with pytest.raises(ValueError, match=r"x_t has shape \(2, 8, 8, 3\), expected .*\(8, 8, 1\)"):
        family.denoiser.x0(family.param_shapes(), jnp.repeat(x, 3, axis=-1), t, labels)


def test_null_cond_is_zero_or_none():
    denoiser = build().denoiser
    np.testing.assert_array_equal(denoiser.null_cond(jnp.ones((2, 10))), np.zeros((2, 10)))
    assert denoiser.null_cond(None) is None


def test_unconditional_family_needs_no_label():
    family = build(num_classes=0)
    x, t, labels = sample(family)
    assert labels is None
    assert jax.eval_shape(family.denoiser.x0, family.param_shapes(), x, t, None).shape == x.shape
    assert not any(name.startswith("model.map_label") for name in _names(family))


def test_x0_with_dropout_draws_from_its_key():
    family = build(dropout=0.5, channel_mult=(1,), resolution=4)
    params, args = perturbed(family), sample(family)
    one, same, other = (
        family.x0_with_dropout(params, *args, jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_trainable_mask_excludes_the_fourier_frequencies_alone():
    mask = trainable_mask({"critic": build(**NCSNPP).param_shapes()})["critic"]
    assert mask["constants"] == {"map_noise": {"freqs": False}}
    assert all(jax.tree.leaves(mask["params"]))


def test_trainable_mask_keeps_weight_decay_from_constants():
    params = {"constants": {"freqs": jnp.ones(2)}, "params": {"bias": jnp.ones(2)}}
    decay = optax.add_decayed_weights(0.5, mask=trainable_mask)
    updates, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
    np.testing.assert_array_equal(updates["constants"]["freqs"], [0.0, 0.0])
    np.testing.assert_array_equal(updates["params"]["bias"], [0.5, 0.5])


def _names(family):
    return family.to_state_dict(jax.tree.map(lambda s: np.zeros(s.shape), family.param_shapes()))


@pytest.mark.parametrize("changes", [{}, NCSNPP], ids=["adm", "ncsnpp"])
def test_load_returns_what_save_wrote(tmp_path, changes):
    family = build(**changes)
    params = perturbed(family)
    family.save(params, tmp_path / "weights.safetensors")
    loaded = family.load(tmp_path / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    "content, place, got",
    [
        (None, "", "has no config.json"),
        (None, "student.safetensors", "has no config.json"),
        ('{"config": {"model": {"family": "edm"}}}', "", "is of class None"),
    ],
    ids=["folder", "file", "run"],
)
def test_read_says_what_opens_weights_without_a_class(tmp_path, content, place, got):
    """As EDM's have none, and a run's folder is no network's."""
    (tmp_path / "student.safetensors").write_bytes(b"")
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{got}, expected .*`load\(FILE\)` reads the weights"):
        families.read(tmp_path / place)


def test_load_names_the_file_and_lists_what_does_not_fit(tmp_path):
    family = build()
    path = tmp_path / "weights.safetensors"
    build(image_channels=3).save(build(image_channels=3).init(jax.random.key(0)), path)
    with pytest.raises(ValueError, match="3 misshapen") as caught:
        family.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "model.enc.8x8_conv.weight (got (8, 3, 3, 3), expected (8, 1, 3, 3))" in message


def test_from_state_dict_refuses_another_resampling_filter():
    family = build(**NCSNPP)
    tensors = family.to_state_dict(family.init(jax.random.key(0)))
    box = build(**{**NCSNPP, "resample_filter": (1, 1, 1, 1)})
    with pytest.raises(ValueError, match="another value than the configuration implies"):
        box.from_state_dict(tensors)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"network": "unet"}, r"model.network='unet', expected one of \['adm', 'song'\]"),
        ({"dtype": "float16"}, "model.dtype='float16'"),
        ({"embedding_type": "learned"}, "model.embedding_type='learned'"),
        ({"encoder_type": "skip"}, "model.encoder_type='skip'"),
        ({"resolution": 6, "channel_mult": (1, 1, 1)}, "divisible by 4 for 3 levels"),
        ({"channel_mult": ()}, "one multiplier a level"),
        ({"sigma_max": 0.001}, "model.sigma_min=0.002 and sigma_max=0.001, expected sigma_min <"),
        ({"pipeline": "sd15"}, "model.pipeline is no key of model.family=edm, expected one of"),
        ({"model_chanels": 8}, r"did you mean 'model_channels'\?"),
        ({"model_channels": 0}, "model.model_channels=0, expected at least 4"),
        ({"num_classes": -1}, "model.num_classes=-1, expected 0 or more"),
        ({"dropout": 1.0}, r"model.dropout=1.0, expected a number in \[0, 1\)"),
        ({"sigma_data": 0.0}, "model.sigma_data=0.0, expected a positive number"),
    ],
)
def test_build_refuses_what_it_cannot_build(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_build_reads_every_field_of_the_network():
    config = {**defaults.get_config().model, **NCSNPP}
    changed = {
        "resolution": 16,
        "image_channels": 3,
        "num_classes": 4,
        "model_channels": 12,
        "channel_mult": (1, 1, 2),
        "num_blocks": 2,
        "attention_resolutions": (8,),
        "dropout": 0.25,
        "remat": "block",
    }
    module = edm.build({**config, **changed}).module
    renamed = {"num_classes": "label_dim"}
    for name, value in {**changed, **NCSNPP}.items():
        if name != "network":
            assert getattr(module, renamed.get(name, name)) == value, name


def test_from_edm_kwargs_builds_the_published_imagenet_network():
    config = edm.from_edm_kwargs(
        {
            "model_type": "DhariwalUNet",
            "img_resolution": 64,
            "img_channels": 3,
            "label_dim": 1000,
            "use_fp16": True,
            "sigma_min": 0,
            "sigma_max": float("inf"),
        }
    )
    family = edm.build(config)
    sizes = jax.tree.map(lambda leaf: leaf.size, family.param_shapes())
    assert sum(jax.tree.leaves(sizes)) == pytest.approx(296e6, rel=2e-3)
    assert family.feature_shapes(1)[0].shape == (1, 8, 8, 768)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"model_type": "VPPrecond"}, "model_type='VPPrecond'"),
        ({"decoder_type": "skip"}, "decoder_type='skip'"),
        ({"channel_mutl": (1, 2)}, "'channel_mutl'"),
    ],
)
def test_from_edm_kwargs_refuses_unknown_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        edm.from_edm_kwargs({"img_resolution": 8, "img_channels": 1, **kwargs})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_resolutions": (16,)}, r"=\(16,\) has \[16\], which no level .* \[8, 4\]"),
        ({"attention_resolutions": (4, 2), "model_channels": 64}, r"has \[2\], which no level"),
        ({"attention_resolutions": (8, 4), "model_channels": 32}, r"has \[8\], .* \[32\] channels"),
        ({"network": "song", "attention_resolutions": (16,)}, "which no level of the network"),
    ],
)
def test_build_refuses_attention_that_it_would_not_build(changes, message):
    said = {"image_channels": 1, "num_classes": 10}
    with pytest.raises(match=message):
        edm.build({**defaults.get_config().model, **said, **changes})


def test_what_older_runs_and_published_weights_record_is_built_as_it_was(caplog):
    arguments = {"img_resolution": 8, "img_channels": 1, "channel_mult": [1, 2], "num_blocks": 1}
    config = edm.from_edm_kwargs(
        {**arguments, "model_channels": 32, "attn_resolutions": [16, 8, 4]}
    )
    assert config["attention_resolutions"] == (4,)
    assert "is (16, 8, 4), of which the network attends at (4,) alone" in caplog.text
    older = defaults.get_config().model.to_dict() | {"attention_resolutions": [16, 8, 4]}
    groups = translated({"model": older}, "an older run")
    assert tuple(groups["model"]["attention_resolutions"]) == (4,)
    assert translated(groups, "today's") == groups


def test_weights_without_filters_have_those_of_the_config(caplog):
    for changes, said in (({}, False), (NCSNPP, True)):
        family = build(**changes)
        params = family.init(jax.random.key(0))
        tensors = family.to_state_dict(params)
        left = {name: it for name, it in tensors.items() if "resample_filter" not in name}
        assert len(left) < len(tensors)
        caplog.clear()
        got = family.from_state_dict(left)
        jax.tree.map(np.testing.assert_array_equal, got, params)
        assert ("config.model.resample_filter=(1, 3, 3, 1)" in caplog.text) is said
