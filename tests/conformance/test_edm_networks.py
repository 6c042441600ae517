"""EDM's networks against the vectors recorded from the original code."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from dmd2_jax.families.edm import family as edm
from dmd2_jax.weights.state_dict import read_safetensors
from tests.conformance.derive import nchw, nhwc, recorded_or_none, relative

SCHEDULE = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "num_levels": 1000}
OUTPUT = 1e-5
GRADIENT = 5e-5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test for every network that the folder's config.json names."""
    path = Path(metafunc.config.getoption("--golden")) / "edm_networks" / "config.json"
    names = sorted(json.loads(path.read_text())) if path.is_file() else []
    if "recorded" in metafunc.fixturenames:
        metafunc.parametrize("recorded", names, indirect=True, scope="module")


class Recorded:
    """One recorded network: our twin of it with its weights, its inputs (NHWC) and outputs."""

    def __init__(self, folder: Path, name: str) -> None:
        config = json.loads((folder / "config.json").read_text())[name]
        self.family = edm.build(edm.from_edm_kwargs(config) | SCHEDULE)
        self.weights = folder / f"{name}.safetensors"
        self.params = self.family.load(self.weights)
        self.arrays = dict(np.load(folder / f"{name}.npz"))
        self.x = jnp.asarray(nhwc(self.arrays["x"]))
        self.sigma = jnp.asarray(self.arrays["sigma"])
        self.labels = recorded_or_none(self.arrays, "labels")

    @functools.cached_property
    def x0_and_gradient(self):
        """One program for every test of D: (params, x, sigma, labels) -> D, d sum(w D) / dx."""
        weights = jnp.asarray(nhwc(self.arrays["w"]))

        def scalar(x, params, sigma, labels):
            x0 = self.family.denoiser.x0(params, x, sigma, labels)
            return jnp.sum(weights * x0), x0

        @jax.jit
        def call(params, x, sigma, labels):
            gradient, x0 = jax.grad(scalar, has_aux=True)(x, params, sigma, labels)
            return x0, gradient

        return functools.partial(call, self.params)

    @functools.cached_property
    def raw_and_bottleneck(self):
        """F(c_in x, c_noise, labels) and the bottleneck of the same pass."""
        c_in = 1 / np.sqrt(self.family.sigma_data**2 + self.arrays["sigma"] ** 2)
        return jax.jit(functools.partial(self.family.module.apply, method="call_with_bottleneck"))(
            self.params,
            self.x * c_in[:, None, None, None],
            jnp.asarray(self.arrays["c_noise"]),
            self.labels,
        )


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest, golden) -> Recorded:
    return Recorded(golden / "edm_networks", request.param)


def test_x0_equals_recorded_d(recorded):
    actual, _ = recorded.x0_and_gradient(recorded.x, recorded.sigma, recorded.labels)
    assert relative(nchw(actual), recorded.arrays["D"]) < OUTPUT


def test_x0_gradient_equals_recorded_gradient(recorded):
    _, actual = recorded.x0_and_gradient(recorded.x, recorded.sigma, recorded.labels)
    assert relative(nchw(actual), recorded.arrays["dscalar_dx"]) < GRADIENT


def test_x0_with_null_label_equals_recorded_d(recorded):
    null = recorded.family.denoiser.null_cond(recorded.labels)
    actual, _ = recorded.x0_and_gradient(recorded.x, recorded.sigma, null)
    # Without classes there is one D, and every label is the null label.
    expected = "D" if recorded.labels is None else "D_no_label"
    assert relative(nchw(actual), recorded.arrays[expected]) < OUTPUT


def test_x0_with_one_sigma_equals_recorded_d(recorded):
    sigma = jnp.full_like(recorded.sigma, 2.5)
    actual, _ = recorded.x0_and_gradient(recorded.x, sigma, recorded.labels)
    assert relative(nchw(actual), recorded.arrays["D_sigma_scalar"]) < OUTPUT


def test_network_output_equals_recorded_f(recorded):
    actual, _ = recorded.raw_and_bottleneck
    assert relative(nchw(actual), recorded.arrays["F"]) < OUTPUT


def test_bottleneck_equals_recorded_bottleneck(recorded):
    if "bottleneck" not in recorded.arrays:
        pytest.skip("no bottleneck was recorded for this network")
    expected = recorded.arrays["bottleneck"]
    assert relative(nchw(recorded.raw_and_bottleneck[1]), expected) < OUTPUT
    (features,) = jax.jit(recorded.family.denoiser.features)(
        recorded.params, recorded.x, recorded.sigma, recorded.labels
    )
    assert relative(nchw(features), expected) < OUTPUT


def test_embed_noise_equals_recorded_embedding(recorded):
    actual = recorded.family.module.apply(
        recorded.params, jnp.asarray(recorded.arrays["c_noise"]), method="embed_noise"
    )
    assert relative(actual, recorded.arrays["map_noise_out"]) < OUTPUT


def test_to_state_dict_returns_the_recorded_tensors(recorded):
    expected = read_safetensors(recorded.weights)
    actual = recorded.family.to_state_dict(recorded.params)
    assert sorted(actual) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(actual[name], tensor, err_msg=name)


CLASSES = ("labels", "label_index", "D_no_label")


def test_a_network_recorded_without_classes_is_held_to_all_of_it(golden, tmp_path) -> None:
    # ADM's map_label has no bias: without it the network is what was recorded as D_no_label.
    folder = golden / "edm_networks"
    config = json.loads((folder / "config.json").read_text())["adm"] | {"label_dim": 0}
    (tmp_path / "config.json").write_text(json.dumps({"plain": config}))
    tensors = read_safetensors(folder / "adm.safetensors")
    kept = {name: w for name, w in tensors.items() if "map_label" not in name}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "plain.safetensors")
    arrays = dict(np.load(folder / "adm.npz"))
    arrays["D"] = arrays["D_no_label"]
    plain = {name: array for name, array in arrays.items() if name not in CLASSES}
    np.savez(tmp_path / "plain.npz", **plain)
    recorded = Recorded(tmp_path, "plain")
    test_x0_equals_recorded_d(recorded)
    test_x0_with_null_label_equals_recorded_d(recorded)
    test_embed_noise_equals_recorded_embedding(recorded)
    test_to_state_dict_returns_the_recorded_tensors(recorded)
    # The rest was recorded with labels: our own stands in for it, so that it is read and compared.
    raw, bottleneck = recorded.raw_and_bottleneck
    call = recorded.x0_and_gradient
    recorded.arrays |= {
        "F": nchw(raw),
        "bottleneck": nchw(bottleneck),
        "dscalar_dx": nchw(call(recorded.x, recorded.sigma, None)[1]),
        "D_sigma_scalar": nchw(call(recorded.x, jnp.full_like(recorded.sigma, 2.5), None)[0]),
    }
    test_x0_gradient_equals_recorded_gradient(recorded)
    test_x0_with_one_sigma_equals_recorded_d(recorded)
    test_network_output_equals_recorded_f(recorded)
    test_bottleneck_equals_recorded_bottleneck(recorded)
