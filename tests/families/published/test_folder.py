"""Component folders: every layout that is read, what is written, what is refused."""

import json

import jax
import numpy as np
import pytest

from dmd2_jax.families.published.folder import (
    read_component,
    read_component_tensors,
    write_component,
)
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from dmd2_jax.weights.weight_files import write_weights
from tests.families import tiny_models

STEM = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def model() -> PublishedModel:
    return PublishedModel.from_config(tiny_models.VAE)


@pytest.fixture(scope="module")
def tensors(model):
    random = np.random.default_rng(1)
    shapes = model.tensor_shapes()
    return {name: random.normal(size=shapes[name]).astype(np.float32) for name in shapes}


@pytest.fixture(scope="module")
def params(model, tensors):
    return model.from_tensors(tensors)


@pytest.fixture
def folder(tmp_path):
    """A folder with a config and no weights yet."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_models.VAE))
    return tmp_path


def assert_equal_trees(actual, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def write_shards(tensors, folder, index_name=f"{STEM}.safetensors.index.json"):
    """Write the tensors as two shards and their index, as diffusers does."""
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"{STEM}-0000{number}-of-00002.safetensors"
        write_safetensors({name: tensors[name] for name in part}, folder / shard)
        places |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / index_name).write_text(json.dumps(index))
    return index


def test_read_component_returns_what_was_written(model, params, tmp_path):
    write_component(model, params, tmp_path / "vae")
    read, actual = read_component(tmp_path / "vae")
    assert read == model
    assert_equal_trees(actual, params)


def test_read_component_reads_shards(tensors, params, folder):
    write_shards(tensors, folder)
    assert_equal_trees(read_component(folder)[1], params)


def test_read_component_reads_shards_of_a_variant(tensors, params, folder):
    write_shards(tensors, folder, f"{STEM}.safetensors.index.fp16.json")
    assert_equal_trees(read_component(folder, variant="fp16")[1], params)
    assert_equal_trees(read_component(folder)[1], params)


def test_read_component_reads_a_pickled_file(tensors, params, folder):
    write_weights(tensors, folder / f"{STEM}.bin")
    assert_equal_trees(read_component(folder)[1], params)


def test_read_component_takes_the_only_variant(tensors, params, folder):
    write_safetensors(tensors, folder / f"{STEM}.fp16.safetensors")
    assert_equal_trees(read_component(folder)[1], params)


def test_read_component_prefers_full_precision(tensors, params, folder):
    write_safetensors(tensors, folder / f"{STEM}.safetensors")
    zeros = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    write_safetensors(zeros, folder / f"{STEM}.fp16.safetensors")
    assert_equal_trees(read_component(folder)[1], params)
    assert_equal_trees(
        read_component(folder, variant="fp16")[1], jax.tree.map(np.zeros_like, params)
    )


def test_read_component_refuses_a_choice_of_variants(tensors, folder):
    for variant in ("fp16", "non_ema"):
        write_safetensors(tensors, folder / f"{STEM}.{variant}.safetensors")
    with pytest.raises(ValueError, match=r"only in the variants \['fp16', 'non_ema'\]"):
        read_component(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_write_component_in_half_precision_returns_the_bits(model, params, tmp_path, dtype):
    write_component(model, params, tmp_path / "a", variant="fp16", dtype=dtype)
    read, halved = read_component(tmp_path / "a", variant="fp16")
    write_component(read, halved, tmp_path / "b", variant="fp16", dtype=dtype)
    first, second = (
        read_safetensors(tmp_path / name / f"{STEM}.fp16.safetensors") for name in ("a", "b")
    )
    for name in first:
        assert first[name].dtype == dtype
        np.testing.assert_array_equal(first[name], second[name])


def test_write_component_refuses_values_beyond_float16(model, params, tmp_path):
    large = jax.tree.map(lambda leaf: leaf * 1e6, params)
    with pytest.raises(ValueError, match="that float16 can hold; write float32 or bfloat16"):
        write_component(model, large, tmp_path, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_write_component_refuses_an_unknown_dtype(model, params, tmp_path):
    with pytest.raises(ValueError, match="dtype='int8', expected one of"):
        write_component(model, params, tmp_path, dtype="int8")


def test_read_component_names_the_missing_weights(folder):
    with pytest.raises(ValueError, match=rf"no weights: got \['config.json'\], expected {STEM}"):
        read_component(folder)


def test_read_component_names_the_missing_config(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        read_component(tmp_path)


def test_read_component_refuses_another_class(folder):
    with pytest.raises(ValueError, match="'AutoencoderKL', expected 'UNet2DConditionModel'"):
        read_component(folder, expected=("UNet2DConditionModel",))


@pytest.mark.parametrize("shard", ["../weights.safetensors", "/etc/passwd", "shard.bin"])
def test_read_component_tensors_refuses_shards_from_elsewhere(folder, shard):
    index = {"weight_map": {"conv_in.weight": shard}}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected a .safetensors file beside it"):
        read_component_tensors(folder, STEM)


def test_read_component_tensors_refuses_an_index_that_disagrees(tensors, folder):
    index = write_shards(tensors, folder)
    lost = next(iter(index["weight_map"]))
    del index["weight_map"][lost]
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"disagree on 1 tensors.*{lost}"):
        read_component_tensors(folder, STEM)


def test_read_component_tensors_refuses_an_index_without_map(folder):
    (folder / f"{STEM}.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        read_component_tensors(folder, STEM)


def test_read_component_refuses_a_damaged_shard(tensors, folder):
    write_shards(tensors, folder)
    shard = next(folder.glob("*-of-*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        read_component(folder)


def test_read_component_refuses_weights_of_another_config(model, params, tmp_path):
    write_component(model, params, tmp_path)
    other = tiny_models.VAE | {"layers_per_block": 2}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="AutoencoderKL: weights do not fit the network"):
        read_component(tmp_path)
