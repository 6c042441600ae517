"""EDM's networks against the vectors recorded from the original code."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families import edm
from dmd2_jax.families.state_dict import read_safetensors
from tests.conformance.derive import nchw, nhwc, relative

SCHEDULE = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "num_levels": 1000}
OUTPUT = 1e-5
GRADIENT = 5e-5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test for every network that the folder's config.json names."""
    path = Path(metafunc.config.getoption("--golden")) / "edm_networks" / "config.json"
    names = sorted(json.loads(path.read_text())) if path.is_file() else []
    metafunc.parametrize("recorded", names, indirect=True, scope="module")


class Recorded:
    """One recorded network: our twin of it with its weights, its inputs (NHWC) and outputs."""

    def __init__(self, folder: Path, name: str) -> None:
        """Read the network `name`."""
        config = json.loads((folder / "config.json").read_text())[name]
        self.family = edm.build(edm.from_edm_kwargs(config), SCHEDULE)
        self.weights = folder / f"{name}.safetensors"
        self.params = self.family.load(self.weights)
        self.arrays = dict(np.load(folder / f"{name}.npz"))
        self.x = jnp.asarray(nhwc(self.arrays["x"]))
        self.sigma = jnp.asarray(self.arrays["sigma"])
        self.labels = jnp.asarray(self.arrays["labels"])

    @functools.cached_property
    def x0(self):
        """Return the jitted D(x, sigma, labels)."""
        return jax.jit(functools.partial(self.family.denoiser.x0, self.params))


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest, golden) -> Recorded:
    """Open the recorded network of this test run."""
    return Recorded(golden / "edm_networks", request.param)


def test_x0_equals_recorded_d(recorded: Recorded) -> None:
    """D(x, sigma, labels)."""
    actual = recorded.x0(recorded.x, recorded.sigma, recorded.labels)
    assert relative(nchw(actual), recorded.arrays["D"]) < OUTPUT


def test_x0_without_label_equals_recorded_d(recorded: Recorded) -> None:
    """D(x, sigma, None); an all-zero label is the same."""
    expected = recorded.arrays["D_no_label"]
    denoiser = recorded.family.denoiser
    zeros = recorded.x0(recorded.x, recorded.sigma, denoiser.null_cond(recorded.labels))
    assert relative(nchw(zeros), expected) < OUTPUT
    none = recorded.x0(recorded.x[:1], recorded.sigma[:1], None)
    assert relative(nchw(none), expected[:1]) < OUTPUT


def test_x0_takes_one_sigma_for_the_batch(recorded: Recorded) -> None:
    """D(x, 2.5, labels) with a scalar sigma."""
    actual = recorded.x0(recorded.x, jnp.float32(2.5), recorded.labels)
    assert relative(nchw(actual), recorded.arrays["D_sigma_scalar"]) < OUTPUT


def test_x0_gradient_equals_recorded_gradient(recorded: Recorded) -> None:
    """d sum(w D) / dx."""
    weights = jnp.asarray(nhwc(recorded.arrays["w"]))

    def scalar(x: jax.Array) -> jax.Array:
        return jnp.sum(weights * recorded.x0(x, recorded.sigma, recorded.labels))

    actual = jax.jit(jax.grad(scalar))(recorded.x)
    assert relative(nchw(actual), recorded.arrays["dscalar_dx"]) < GRADIENT


def test_network_output_equals_recorded_f(recorded: Recorded) -> None:
    """F(c_in x, c_noise, labels)."""
    sigma_data = recorded.family.sigma_data
    c_in = 1 / np.sqrt(sigma_data**2 + recorded.arrays["sigma"] ** 2)
    actual = jax.jit(recorded.family.module.apply)(
        recorded.params,
        recorded.x * c_in[:, None, None, None],
        jnp.asarray(recorded.arrays["c_noise"]),
        recorded.labels,
    )
    assert relative(nchw(actual), recorded.arrays["F"]) < OUTPUT


def test_embed_noise_equals_recorded_embedding(recorded: Recorded) -> None:
    """The noise level's embedding before any learned layer."""
    actual = recorded.family.module.apply(
        recorded.params, jnp.asarray(recorded.arrays["c_noise"]), method="embed_noise"
    )
    assert relative(actual, recorded.arrays["map_noise_out"]) < OUTPUT


def test_features_equal_recorded_bottleneck(recorded: Recorded) -> None:
    """The last encoder block's output, alone and beside D."""
    if "bottleneck" not in recorded.arrays:
        pytest.skip("no bottleneck was recorded for this network")
    inputs = (recorded.params, recorded.x, recorded.sigma, recorded.labels)
    (alone,) = jax.jit(recorded.family.denoiser.features)(*inputs)
    x0, (beside,) = jax.jit(recorded.family.denoiser.x0_and_features)(*inputs)
    assert relative(nchw(alone), recorded.arrays["bottleneck"]) < OUTPUT
    assert relative(nchw(beside), recorded.arrays["bottleneck"]) < OUTPUT
    assert relative(nchw(x0), recorded.arrays["D"]) < OUTPUT


def test_state_dict_returns_the_recorded_tensors(recorded: Recorded) -> None:
    """Loading and writing back gives every tensor, buffers included, bit for bit."""
    expected = read_safetensors(recorded.weights)
    actual = recorded.family.to_state_dict(recorded.params)
    assert sorted(actual) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(actual[name], tensor, err_msg=name)
