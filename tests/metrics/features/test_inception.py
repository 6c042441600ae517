"""The Inception extractor: its weights' file, refused files, the whole way from image to FID."""

import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.metrics.features import inception
from dmd2_jax.networks.inception import InceptionV3, inception_params
from dmd2_jax.weights.stand_ins import Record
from dmd2_jax.weights.torch_files import write_torch
from tests.weights import make
from tests.weights.inception import SHAPES
from tests.weights.nvidia_inception import PLACES


def tensors():
    """Zeros but for the variances, and one kernel and one norm that can be followed by hand."""
    given = {
        name: (np.ones if name.endswith("var") else np.zeros)(shape, np.float32)
        for name, shape in SHAPES.items()
    }
    name = "Mixed_7c.branch_pool"
    given[f"{name}.conv.weight"][3, 5] = 2.0
    given[f"{name}.bn.weight"][:] = 3.0
    given[f"{name}.bn.running_var"][:] = 4.0 - 1e-3
    given[f"{name}.bn.running_mean"][:] = 8.0
    given[f"{name}.bn.bias"][:] = 0.5
    return given


def test_inception_params_fold_the_batch_norm():
    """gamma / sqrt(var + eps) = 3 / 2, so the kernel becomes 3 and the bias 1/2 - 8 * 3/2."""
    layer = inception_params(tensors())["Mixed_7c"]["branch_pool"]
    np.testing.assert_allclose(layer["kernel"][0, 0, 5, 3], 3.0, rtol=1e-6)
    np.testing.assert_allclose(layer["bias"], -11.5, rtol=1e-6)


def test_inception_params_leave_out_counters_and_the_auxiliary_classifier():
    extra = {
        "Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64),
        "AuxLogits.fc.bias": np.zeros(1008, np.float32),
    }
    got, expected = (inception_params(given) for given in (tensors() | extra, tensors()))
    assert jax.tree.all(jax.tree.map(np.array_equal, got, expected))


def test_inception_params_name_what_does_not_fit():
    given = tensors()
    del given["Mixed_5b.branch1x1.conv.weight"]
    given["fc.weight"] = np.zeros((1000, 2048), np.float32)  # torchvision's own network
    given["head.bias"] = np.zeros(3, np.float32)
    given["fc.bias"][0] = np.nan
    with pytest.raises(ValueError) as error:
        inception_params(given)
    for part in (
        "1 missing: Mixed_5b.branch1x1.conv.weight",
        "1 unknown: head.bias",
        "1 misshapen: fc.weight (1000, 2048) instead of (1008, 2048)",
        "1 not finite: fc.bias",
        inception.WEIGHTS,
    ):
        assert part in str(error.value)


def test_inception_logits_leave_the_bias_out_unless_asked():
    params = {"kernel": jnp.ones((2048, 1008)), "bias": jnp.arange(1008.0)}
    from dmd2_jax.networks.inception import _Head

    features = jnp.ones((1, 2048))
    plain, biased = (
        _Head(1008, jax.lax.Precision.HIGHEST, add).apply({"params": params}, features)
        for add in (False, True)
    )
    np.testing.assert_array_equal(plain, np.full((1, 1008), 2048.0))
    np.testing.assert_array_equal(biased - plain, np.arange(1008.0)[None])
    assert InceptionV3().output_bias is False


def test_read_inception_reads_what_torch_save_wrote(tmp_path):
    write_torch(tensors(), tmp_path / inception.WEIGHTS)
    got = inception.read_inception(tmp_path / inception.WEIGHTS)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, inception_params(tensors())))


def test_inception_extractor_has_the_name_of_its_resize(tmp_path):
    write_torch(tensors(), tmp_path / "weights.pth")
    network = inception.inception_extractor(tmp_path / "weights.pth", "clean_fid")
    assert (network.name, network.dimension) == ("inception_v3/clean_fid", 2048)


def test_inception_extractor_refuses_an_unknown_resize_before_it_reads(tmp_path):
    with pytest.raises(ValueError, match="resize='bilinear', expected one of"):
        inception.inception_extractor(tmp_path / "missing.pth", "bilinear")


def test_patch_extractor_refuses_small_images(tmp_path):
    write_torch(tensors(), tmp_path / "weights.pth")
    network = inception.inception_extractor(tmp_path / "weights.pth", "patch")
    with pytest.raises(ValueError, match="64 x 64 pixels, expected at least 299 x 299"):
        network(np.zeros((1, 64, 64, 3), np.uint8))


def nvidia_tensors(given):
    """The same weights as NVIDIA's files have them: its names, no scale."""
    names = {ours: theirs for theirs, ours in PLACES.items()}
    leaves = {
        "conv.weight": "weight",
        "bn.bias": "beta",
        "bn.running_mean": "mean",
        "bn.running_var": "var",
    }
    found = {"output.weight": given["fc.weight"], "output.bias": given["fc.bias"]}
    for ours, theirs in names.items():
        assert (given[f"{ours}.bn.weight"] == 1).all()
        found |= {f"{theirs}.{its}": given[f"{ours}.{leaf}"] for leaf, its in leaves.items()}
    return found


def drawn_tensors():
    """Weights of which no two are alike, so that any that change places are found."""
    random = np.random.default_rng(0)
    return {
        name: np.ones(shape, np.float32)
        if name.endswith("bn.weight")
        else random.uniform(0.5, 1.5, shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def recorded(tensors, scripted):
    """The tree of modules of a file: TorchScript's, or that of a pickle with persistent classes."""
    root = Record("__torch__.InceptionV3" if scripted else "InceptionV3", {"training": False})
    for name, array in tensors.items():
        node, (*path, leaf) = root, name.split(".")
        for part in path:
            children = node.state if scripted else node.state.setdefault("_modules", {})
            kind = "__torch__.Module" if scripted else "Module"
            node = children.setdefault(part, Record(kind, {"training": False}))
        (node.state if scripted else node.state.setdefault("_parameters", {}))[leaf] = array
    return root


@pytest.mark.parametrize("scripted", [False, True], ids=["pkl", "pt"])
@pytest.mark.parametrize("prefix", ["", "base."])
def test_read_inception_reads_nvidias_files(monkeypatch, scripted, prefix):
    given = drawn_tensors()
    named = {prefix + name: array for name, array in nvidia_tensors(given).items()}
    monkeypatch.setattr(inception, "read_torch", lambda path: recorded(named, scripted))
    got = inception.read_inception(inception.NVIDIA_WEIGHTS)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, inception_params(given)))


def test_read_inception_names_what_a_file_of_nvidia_lacks(monkeypatch):
    named = nvidia_tensors(drawn_tensors())
    del named["layers.mixed_9.tower_mixed_conv.weight"], named["layers.mixed.conv.beta"]
    monkeypatch.setattr(inception, "read_torch", lambda path: recorded(named, True))
    missing = (
        "3 missing: Mixed_5b.branch1x1.bn.weight, "
        "Mixed_5b.branch1x1.bn.bias, Mixed_7b.branch3x3_2a.conv.weight"
    )
    with pytest.raises(ValueError, match=re.escape(missing)):
        inception.read_inception("x.pt")


def test_read_inception_refuses_another_program():
    with pytest.raises(ValueError, match=r"program.pt: got .* tensors with .* missing"):
        inception.read_inception(make.HERE / "program.pt")


def test_read_inception_runs_nothing_in_a_pickle(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harmed"), "w"))

    path = tmp_path / "inception-v3-2015-12-05.pkl"
    path.write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match=f"io.open.*{inception.WEIGHTS}"):
        inception.read_inception(path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [[1, 2], {"ema": {"x": 3}}])
def test_read_inception_refuses_what_is_no_state_dict(tmp_path, content):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        ValueError, match=f"no state dict, expected pytorch-fid's {inception.WEIGHTS}"
    ):
        inception.read_inception(path)


def test_read_inception_names_a_file_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=f"nowhere.pth.*{inception.WEIGHTS}"):
        inception.read_inception(tmp_path / "nowhere.pth")
