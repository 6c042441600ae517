"""T5's encoder against what transformers recorded, and against transformers where it is there."""

from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.families.published.folder import read_component, write_component
from dmd2_jax.networks.t5 import relative_buckets, t5_from_config
from dmd2_jax.weights.state_dict import read_safetensors
from tests.conformance.derive import relative

RECORDED = Path(__file__).parent / "recorded_t5"
ENCODER = RECORDED / "text_encoder_3"


def test_t5_equals_the_recorded_hidden_state():
    model, params = read_component(ENCODER)
    arrays = np.load(ENCODER.with_suffix(".npz"))
    actual = model.module.apply(params, arrays["input_ids"])
    assert relative(actual, arrays["last_hidden_state"]) < 1e-5


def test_writing_t5_returns_its_tensors_bit_for_bit(tmp_path):
    model, params = read_component(ENCODER)
    write_component(model, params, tmp_path)
    expected, actual = (read_safetensors(d / "model.safetensors") for d in (ENCODER, tmp_path))
    assert sorted(actual) == sorted(expected)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)


def test_buckets_are_exact_near_by_and_one_from_the_largest_distance_on():
    buckets = relative_buckets(300, 32, 128)
    np.testing.assert_array_equal(buckets[0, :8], [0, 17, 18, 19, 20, 21, 22, 23])
    np.testing.assert_array_equal(buckets[:8, 0], np.arange(8))
    assert set(buckets[0, 128:]) == {31} and set(buckets[128:, 0]) == {15}


def test_the_first_t5_without_a_gate_is_refused():
    with pytest.raises(ValueError, match="feed_forward_proj='relu'"):
        t5_from_config({"d_model": 8})


@pytest.mark.parametrize("buckets, most, tokens", [(32, 128, 512), (8, 9, 30), (16, 20, 60)])
def test_buckets_are_those_of_transformers(buckets, most, tokens):
    torch = pytest.importorskip("torch", reason="transformers' T5 is in torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    distance = torch.arange(tokens)[None] - torch.arange(tokens)[:, None]
    theirs = t5.T5Attention._relative_position_bucket(distance, True, buckets, most)
    np.testing.assert_array_equal(relative_buckets(tokens, buckets, most), theirs.numpy())
