"""DiT's transformer against the vectors recorded from diffusers, through the one reader."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax import families
from dmd2_jax.weights.state_dict import read_safetensors
from tests.conformance.derive import nhwc, relative

OUTPUT = 1e-5
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def recorded(golden: Path):
    folder = golden / "diffusers_models" / "dit"
    return folder, *families.read(folder), dict(np.load(folder.with_suffix(".npz")))


def test_x0_equals_that_of_the_recorded_prediction(recorded) -> None:
    _, family, params, arrays = recorded
    x_t, t = np.asarray(nhwc(arrays["hidden_states"])), arrays["timestep"].astype(np.int32)
    labels = arrays["class_labels"].astype(np.int32)
    eps = np.asarray(nhwc(arrays["out"]))[..., : x_t.shape[-1]]  # the rest is the variance
    schedule = family.denoiser.schedule
    alpha, sigma = (np.asarray(f(jnp.asarray(t)))[:, None, None, None] for f in schedule[:2])
    x_0 = np.asarray(family.denoiser.x0(params, x_t, t, labels))
    assert relative(x_0, (x_t - sigma * eps) / alpha) < OUTPUT
    # The prediction itself, which x_0 hides at small times and magnifies at large ones.
    assert relative((x_t - alpha * x_0) / sigma, eps) < OUTPUT


def test_weights_go_out_as_they_came_in(recorded, tmp_path: Path) -> None:
    folder, family, params, _ = recorded
    family.save(params, tmp_path)
    expected, actual = (read_safetensors(d / FILE) for d in (folder, tmp_path))
    assert sorted(actual) == sorted(expected)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)


@pytest.mark.parametrize("name", ["dit", "sd3", "flux", "unet_sd15", "unet_sdxl"])
def test_read_finds_the_family_of_a_folder(golden: Path, name: str) -> None:
    folder = golden / "diffusers_models" / name
    family, params = families.read(folder)
    assert family.tensor_shapes().keys() == read_safetensors(folder / FILE).keys()
    assert family.to_state_dict(params).keys() == family.tensor_shapes().keys()
