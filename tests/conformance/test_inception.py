"""The Inception extractor against features recorded from pytorch-fid, with derived weights."""

import json

import jax
import numpy as np
import pytest

from dmd2_jax.metrics.features.inception import inception_extractor
from dmd2_jax.metrics.features.resize import prepare
from dmd2_jax.networks.inception import InceptionV3
from dmd2_jax.weights.torch_files import write_torch
from tests.conformance.derive import check_sums, nchw, nhwc, recipe, relative
from tests.weights.inception import SHAPES

TOLERANCE = 2e-5
"""Relative L2. Two CPU back ends of torch differ by up to 2e-6; the mistakes that the golden
README names move the features by 4e-3 or more."""


@pytest.fixture(scope="module")
def recorded(golden):
    with np.load(golden / "fid" / "inception.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def tensors(golden):
    config = json.loads((golden / "fid" / "config.json").read_text())["inception"]
    return recipe(SHAPES, config["recipe_seed"], config["recipe_gain"])


@pytest.fixture(scope="module")
def outputs(recorded, tensors, tmp_path_factory):
    """(features, {"block0": [b, h, w, c], ...}) of the recorded images, from a file of weights."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    write_torch(tensors, path)
    network = inception_extractor(path, "pytorch_fid", batch_size=2)

    @jax.jit
    def run(params, images):
        features, _ = network.apply(params, images)  # merged with the same operations below
        _, sown = InceptionV3().apply(
            {"params": params}, prepare("pytorch_fid", images), mutable=["intermediates"]
        )
        return features, {name: maps[0] for name, maps in sown["intermediates"].items()}

    images = nhwc(recorded["images_uint8"])
    return jax.device_get(run(network.params, images))


def test_derived_weights_are_those_of_the_recording(recorded, tensors):
    check_sums(tensors, recorded, "weight")


def test_pool_features_equal_recorded_ones(recorded, outputs):
    assert relative(outputs[0], recorded["pool_features"]) < TOLERANCE


@pytest.mark.parametrize("block", ["block0", "block1", "block2"])
def test_stages_equal_recorded_means_over_space(recorded, outputs, block):
    maps = nchw(outputs[1][block])
    assert maps.shape == tuple(recorded[f"{block}_shape"])
    assert relative(maps.mean(axis=(2, 3)), recorded[f"{block}_spatial_mean"]) < TOLERANCE


@pytest.mark.parametrize("block, row", [("block0", 36), ("block1", 17), ("block2", 8)])
def test_stages_equal_recorded_rows(recorded, outputs, block, row):
    maps = nchw(outputs[1][block])
    assert relative(maps[0, :, row], recorded[f"{block}_image0_row{row}"]) < TOLERANCE
