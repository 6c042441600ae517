"""The map between tensors and variables, on a tree of three layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.weights import state_dict

TEMPLATE = {
    "params": {
        "conv": {"kernel": np.zeros((3, 2, 4, 5)), "bias": np.zeros(5)},
        "linear": {"kernel": np.zeros((6, 7))},
        "norm": {"scale": np.zeros(8)},
    }
}


def tensors():
    shapes = {
        "conv.bias": (5,),
        "conv.weight": (5, 4, 3, 2),
        "linear.weight": (7, 6),
        "norm.weight": (8,),
    }
    random = np.random.default_rng(0)
    return {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def test_to_params_transposes_torch_layouts():
    given = tensors()
    params = state_dict.to_params(given, TEMPLATE)["params"]
    assert params["conv"]["kernel"][2, 1, 3, 4] == given["conv.weight"][4, 3, 2, 1]
    assert params["linear"]["kernel"][5, 6] == given["linear.weight"][6, 5]
    np.testing.assert_array_equal(params["norm"]["scale"], given["norm.weight"])


def test_to_tensors_inverts_to_params():
    given = tensors()
    back = state_dict.to_tensors(state_dict.to_params(given, TEMPLATE))
    assert list(back) == sorted(given)
    jax.tree.map(np.testing.assert_array_equal, back, given)


def test_to_params_widens_half_precision():
    given = {name: t.astype(jnp.bfloat16) for name, t in tensors().items()}
    params = state_dict.to_params(given, TEMPLATE)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(
        params["params"]["conv"]["bias"], given["conv.bias"].astype(np.float32)
    )


def _changed(name, value):
    return {**tensors(), name: value}


@pytest.mark.parametrize(
    "given, line",
    [
        ({k: v for k, v in tensors().items() if k != "conv.bias"}, "1 missing: conv.bias"),
        (_changed("other", np.zeros(1, np.float32)), "1 extra: other"),
        (
            _changed("conv.bias", np.zeros(4, np.float32)),
            r"1 misshapen: conv.bias \(got \(4,\), expected \(5,\)\)",
        ),
        (
            _changed("conv.bias", np.zeros(5, np.int32)),
            r"1 not floating point: conv.bias \(got int32\)",
        ),
        (_changed("conv.bias", np.full(5, np.nan, np.float32)), "1 not finite: conv.bias"),
    ],
    ids=["missing", "extra", "misshapen", "integer", "nan"],
)
def test_to_params_lists_each_kind_of_mismatch(given, line):
    with pytest.raises(ValueError, match=line):
        state_dict.to_params(given, TEMPLATE)


def test_to_params_lists_ten_names_and_counts_the_rest():
    extra = {f"extra{i:02}": np.zeros(1, np.float32) for i in range(13)}
    with pytest.raises(ValueError, match="13 extra: extra00.* extra09 and 3 more"):
        state_dict.to_params({**tensors(), **extra}, TEMPLATE)


def test_to_params_shows_hostile_names_without_their_control_characters():
    with pytest.raises(ValueError, match="1 extra: ") as caught:
        state_dict.to_params(_changed("\x1b[2Jx", np.zeros(1, np.float32)), TEMPLATE)
    assert "\x1b" not in str(caught.value)


def test_to_params_wants_the_buffers_and_their_values():
    buffers = {"filter": np.array([1.0, 2.0], np.float32)}
    params = state_dict.to_params({**tensors(), **buffers}, TEMPLATE, buffers=buffers)
    assert "filter" in state_dict.to_tensors(params, buffers=buffers)
    with pytest.raises(ValueError, match="1 missing: filter"):
        state_dict.to_params(tensors(), TEMPLATE, buffers=buffers)
    with pytest.raises(ValueError, match=r"1 of another value .*: filter"):
        state_dict.to_params(_changed("filter", np.ones(2, np.float32)), TEMPLATE, buffers=buffers)


def test_to_tensors_refuses_two_variables_of_one_name():
    with pytest.raises(ValueError, match="two variables are named 'a.weight'"):
        state_dict.to_tensors({"params": {"a": {"kernel": np.ones(1), "scale": np.ones(1)}}})


@pytest.mark.parametrize("content", [b"", b"not safetensors", None], ids=["empty", "text", "cut"])
def test_read_safetensors_refuses_a_damaged_file(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    state_dict.write_safetensors(tensors(), path)
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    with pytest.raises(ValueError, match=r"weights\.safetensors' cannot be read"):
        state_dict.read_safetensors(path)


def test_read_safetensors_refuses_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.safetensors' cannot be read"):
        state_dict.read_safetensors(tmp_path / "nothing.safetensors")


def test_write_safetensors_leaves_the_old_file_when_the_disk_refuses(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    state_dict.write_safetensors(tensors(), path)
    before = path.read_bytes()

    def refuse(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        state_dict.write_safetensors({}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_read_safetensors_returns_bfloat16(tmp_path):
    path = tmp_path / "weights.safetensors"
    given = {"a": np.array([1.5, -2.0], jnp.bfloat16)}
    state_dict.write_safetensors(given, path)
    np.testing.assert_array_equal(state_dict.read_safetensors(path)["a"], given["a"])
