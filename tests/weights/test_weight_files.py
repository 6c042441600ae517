"""Weights of others: EDM's .pkl, wrapped state dicts, and what is refused of them."""

import json
import logging

import numpy as np
import pytest
from safetensors.numpy import load_file

from dmd2_jax.families.edm import family as edm
from dmd2_jax.families.edm.arguments import arguments_of, recipe_values, refuse_other_arguments
from dmd2_jax.weights import weight_files
from dmd2_jax.weights.stand_ins import Record
from dmd2_jax.weights.weight_files import Weights, read_weights, strip_prefix, write_weights
from tests.weights import make

SCHEDULE = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "num_levels": 10}
EDM_PKL = make.HERE / "edm.pkl"


def family(**changes):
    return edm.build(edm.from_edm_kwargs({**make.ARGUMENTS, **changes}) | SCHEDULE)


def test_read_weights_returns_every_tensor_of_an_edm_network():
    weights = read_weights(EDM_PKL)
    expected = make.edm_tensors(family().tensor_shapes())
    assert sorted(weights.tensors) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(weights.tensors[name], tensor, err_msg=name)


def test_read_weights_returns_the_arguments_of_an_edm_network():
    weights = read_weights(EDM_PKL)
    assert (weights.key, weights.class_name) == ("ema", "EDMPrecond")
    expected = {k: tuple(v) if isinstance(v, list) else v for k, v in make.ARGUMENTS.items()}
    assert arguments_of(weights) == expected


def test_load_of_an_edm_pkl_equals_load_of_its_tensors(tmp_path):
    its = family()
    write_weights(read_weights(EDM_PKL).tensors, tmp_path / "x.safetensors")
    one, other = (its.to_state_dict(its.load(p)) for p in (EDM_PKL, tmp_path / "x.safetensors"))
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_load_of_an_edm_pkl_names_every_other_argument():
    other = family(num_blocks=2, channel_mult=[1, 2], dropout=0.0)
    with pytest.raises(ValueError, match="another network than config.model") as caught:
        other.load(EDM_PKL)
    message = str(caught.value)
    assert message.startswith(str(EDM_PKL))
    assert "model.channel_mult: got (1, 1) in the file, expected (1, 2) as in the" in message
    assert "`config.model.channel_mult=1,1` `config.model.num_blocks=1`," in message
    assert "dropout" not in message  # of training; the weights do not depend on it


def test_refuse_other_arguments_compares_what_a_song_network_alone_has():
    arguments = {**make.ARGUMENTS, "model_type": "SongUNet", "channel_mult_noise": 2}
    weights = Weights({}, "EDMPrecond", (), arguments)
    config = edm.from_edm_kwargs({**arguments, "channel_mult_noise": 1})
    with pytest.raises(ValueError, match="model.channel_mult_noise: got 2 in the file"):
        refuse_other_arguments(weights, config)


def test_refuse_other_arguments_ignores_what_an_adm_network_does_not_have():
    weights = Weights({}, "EDMPrecond", (), make.ARGUMENTS)
    refuse_other_arguments(weights, {**family().model_config, "channel_mult_noise": 2})


def test_arguments_of_names_the_positional_ones():
    weights = Weights({}, "EDMPrecond", (64, 3, 1000), {"model_type": "SongUNet"})
    assert arguments_of(weights) == {
        "img_resolution": 64,
        "img_channels": 3,
        "label_dim": 1000,
        "model_type": "SongUNet",
    }


def test_arguments_of_refuses_another_preconditioning():
    with pytest.raises(ValueError, match="of class 'VPPrecond', expected 'EDMPrecond'"):
        arguments_of(Weights({}, "VPPrecond", (), {}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"img_resolution": "64"}, "img_resolution=64, expected int"),
        ({"channel_mult": 2}, "channel_mult=2, expected a list of int"),
        ({"model_type": 3}, "model_type=3, expected str"),
        ({"img_channels": None}, "img_channels=None, expected int"),
    ],
)
def test_from_edm_kwargs_refuses_arguments_of_another_type(change, message):
    with pytest.raises(ValueError, match=message):
        family(**change)


def test_recipe_values_build_the_same_network():
    its = family()
    values = recipe_values(its.model_config)
    again = edm.build({"dtype": "float32", "remat": "none", **values, **SCHEDULE})
    assert again.tensor_shapes() == its.tensor_shapes()


def module(**entries) -> Record:
    return Record("X", {"_modules": {}, "_parameters": {}, "_buffers": {}, **entries})


def dumped(tmp_path, value, monkeypatch):
    """Return a file that reads as this value."""
    monkeypatch.setattr(weight_files, "read_torch", lambda path: value)
    return tmp_path / "x.pkl"


ONE, TWO = np.ones(1, np.float32), np.full(2, 2, np.float32)


@pytest.mark.parametrize(
    "value, key, tensor",
    [
        ({"w": ONE}, "", ONE),
        ({"state_dict": {"w": TWO}, "epoch": 3}, "state_dict", TWO),
        ({"net": {"w": ONE}, "ema": {"w": TWO}}, "ema", TWO),
        ({"G": {"w": ONE}, "G_ema": {"w": TWO}}, "G_ema", TWO),
        ({"step": 1, "model_ema": {"w": TWO}, "model": {"w": ONE}}, "model_ema", TWO),
        (module(_parameters={"w": ONE, "bias": None}), "", ONE),
        ({"ema": module(_buffers={"w": TWO})}, "ema", TWO),
    ],
    ids=["flat", "state_dict", "average first", "G_ema", "model_ema", "module", "module in a dict"],
)
def test_read_weights_finds_the_network(tmp_path, monkeypatch, value, key, tensor):
    weights = read_weights(dumped(tmp_path, value, monkeypatch))
    assert weights.key == key and list(weights.tensors) == ["w"]
    np.testing.assert_array_equal(weights.tensors["w"], tensor)


def test_read_weights_leaves_out_buffers_that_torch_would_not_save(tmp_path, monkeypatch):
    value = module(_buffers={"w": ONE, "x": TWO}, _non_persistent_buffers_set={"x"})
    assert list(read_weights(dumped(tmp_path, value, monkeypatch)).tensors) == ["w"]


def doubling() -> Record:
    node = module(_parameters={"w": ONE})
    for _ in range(40):
        node = module(_modules={"a": node, "b": node})
    return node


def circular() -> Record:
    node = module()
    node.state["_modules"] = {"a": node}
    return node


@pytest.mark.parametrize(
    "value, message",
    [
        (3, "got a int, expected a network or its tensors"),
        ({}, "got a dict, expected a network"),
        ({"step": 3, "optimizer": {}}, r"got entries \['optimizer', 'step'\]"),
        ({"ema": {"x": 3}}, r"got entries \['x'\]"),
        (circular(), "no tree of modules"),
        (doubling(), "no tree of modules"),
        (module(_modules={"a": 3}), "no tree of modules at 'a.'"),
        (module(_modules=[]), "got _modules of type list"),
        (module(_init_kwargs=3), "got _init_kwargs of type int"),
    ],
    ids=[
        "number",
        "empty",
        "no network",
        "nested",
        "circular",
        "doubling",
        "leaf",
        "list",
        "kwargs",
    ],
)
def test_read_weights_refuses_what_is_no_network(tmp_path, monkeypatch, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(dumped(tmp_path, value, monkeypatch))
    assert str(caught.value).startswith(str(tmp_path))


def wrapped(prefix: str, **more) -> dict:
    return {prefix + name: t for name, t in read_weights(EDM_PKL).tensors.items()} | more


@pytest.mark.parametrize("prefix", ["", "module.", "feedforward_model.", "module.fake_unet."])
def test_load_strips_one_common_prefix(tmp_path, prefix, caplog):
    path = tmp_path / "pytorch_model.bin"
    write_weights(wrapped(prefix), path)
    with caplog.at_level(logging.WARNING):
        loaded = family().to_state_dict(family().load(path))
    for name, tensor in read_weights(EDM_PKL).tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)
    said = [f"took the {len(loaded)} tensors under {prefix!r}."] if prefix else []
    assert [record.getMessage() for record in caplog.records] == said


def test_load_takes_the_critic_of_a_guidance_file_and_says_what_it_left(tmp_path, caplog):
    path = tmp_path / "pytorch_model.bin"
    write_weights(wrapped("fake_unet.", **{"cls_pred_branch.0.weight": ONE}), path)
    with caplog.at_level(logging.WARNING):
        family().load(path)
    assert "under 'fake_unet.'; left out cls_pred_branch.*." in caplog.text


def test_load_of_a_recorded_guidance_file_is_that_of_its_critic(tmp_path):
    golden = make.HERE.parent / "golden"
    recorded = json.loads((golden / "dmd2_edm_trajectory" / "config.json").read_text())
    guidance = golden / "dmd2_edm_trajectory" / "final_guidance.safetensors"
    its = edm.build(edm.from_edm_kwargs(recorded["network"]) | SCHEDULE)
    loaded = its.to_state_dict(its.load(guidance))
    for name, tensor in load_file(guidance).items():
        if name.startswith("fake_unet."):
            np.testing.assert_array_equal(loaded[name.removeprefix("fake_unet.")], tensor)


def test_load_still_lists_what_is_missing_under_a_prefix(tmp_path):
    tensors = wrapped("module.")
    del tensors["module.model.out_norm.bias"]
    write_weights(tensors, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="1 missing: model.out_norm.bias"):
        family().load(tmp_path / "x.bin")


def test_strip_prefix_refuses_two_networks_and_takes_the_one_named():
    tensors = {"real.a": ONE, "real.b": ONE, "fake.a": TWO, "fake.b": TWO}
    with pytest.raises(ValueError, match=r"2 times, under \['fake.', 'real.'\].*prefix=fake."):
        strip_prefix(tensors, {"a", "b"})
    for prefix in ("fake", "fake."):
        assert strip_prefix(tensors, {"a", "b"}, prefix) == {"a": TWO, "b": TWO}
    with pytest.raises(
        ValueError, match=r"no tensor is named none\.\*.*\['fake\.\*', 'real\.\*'\]"
    ):
        strip_prefix(tensors, {"a", "b"}, "none")


def test_strip_prefix_leaves_tensors_of_the_right_names_alone():
    tensors = {"a": ONE, "module.a": TWO}
    assert strip_prefix(tensors, {"a"}) is tensors


@pytest.mark.parametrize(
    "name, message",
    [
        ("x.pkl", "EDM's .pkl cannot be written.*non-commercial"),
        ("x.npz", "ends in '.npz', expected one of"),
    ],
)
def test_write_weights_refuses_other_formats(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        write_weights({"w": ONE}, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_edm_pkl_carries_source_code_that_would_end_this_process():
    # Every test here that reads the file shows that it is not executed.
    assert make.SOURCE.encode() in EDM_PKL.read_bytes()
    with pytest.raises(SystemExit):
        exec(make.SOURCE)
