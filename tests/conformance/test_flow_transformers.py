"""SD 3's and FLUX.1's transformers against the vectors recorded from diffusers."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax import families
from dmd2_jax.families.flux.transformer import pack, unpack
from dmd2_jax.families.published.folder import read_component_config
from dmd2_jax.networks.patch_embedding import position_table
from dmd2_jax.weights.state_dict import read_safetensors
from tests.conformance.derive import nchw, nhwc, relative

OUTPUT = 1e-5
NAMES = ("sd3", "flux")
FILE = "diffusion_pytorch_model.safetensors"


class Recorded:
    """One recorded transformer: its family with its weights, and the recorded arrays as ours."""

    def __init__(self, golden: Path, name: str) -> None:
        self.folder = golden / "diffusers_models" / name
        self.family, self.params = families.read(self.folder)
        arrays = dict(np.load(self.folder.with_suffix(".npz")))
        self.sample, self.out = (latents(arrays, name) for name in ("hidden_states", "out"))
        # SD 3 counts time to 1000, FLUX to 1.
        self.t = jnp.asarray(arrays["timestep"]) / (1000 if name == "sd3" else 1)
        self.cond = {
            "prompt_embeds": arrays["encoder_hidden_states"],
            "pooled": arrays["pooled_projections"],
        }
        if self.family.model.config.get("guidance_embeds"):
            self.cond["guidance"] = arrays["guidance"]


def latents(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return NHWC latents of NCHW ones, or of FLUX's packed tokens at their rows and columns."""
    array = arrays[name]
    if array.ndim == 4:
        return np.asarray(nhwc(array))
    _, height, width = arrays["img_ids"].max(axis=0).astype(int) + 1
    return np.asarray(unpack(array.reshape(len(array), height, width, -1)))


@pytest.fixture(scope="module", params=NAMES)
def recorded(request: pytest.FixtureRequest, golden: Path) -> Recorded:
    return Recorded(golden, request.param)


def test_x0_equals_that_of_the_recorded_velocity(recorded):
    actual = recorded.family.denoiser.x0(
        recorded.params, recorded.sample, recorded.t, recorded.cond
    )
    times = np.asarray(recorded.t)[:, None, None, None]
    expected = recorded.sample - times * recorded.out
    assert relative(actual, expected) < OUTPUT
    # The velocity itself, whose errors x_0 hides at small times.
    velocity = (recorded.sample - np.asarray(actual)) / times
    assert relative(nchw(velocity), nchw(recorded.out)) < OUTPUT


def test_weights_go_out_as_they_came_in(recorded, tmp_path):
    recorded.family.save(recorded.params, tmp_path)
    expected, actual = (read_safetensors(d / FILE) for d in (recorded.folder, tmp_path))
    assert sorted(actual) == sorted(expected)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name, strict=True)
    assert read_component_config(tmp_path) == read_component_config(recorded.folder)


def test_position_table_is_the_recorded_one(golden):
    folder = golden / "diffusers_models" / "sd3"
    module = families.sd3.open_folder(folder).model.module
    ours = position_table(module.table_side, module.base_side, module.width)
    theirs = read_safetensors(folder / FILE)["pos_embed.pos_embed"]
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=0, atol=1e-6)


def test_pack_puts_channels_before_rows_and_columns():
    x = np.arange(2 * 4 * 3).reshape(1, 2, 4, 3)
    packed = np.asarray(pack(x))
    expected = [x[0, dy, dx, c] for c in range(3) for dy in range(2) for dx in range(2)]
    np.testing.assert_array_equal(packed[0, 0, 0], expected)
    np.testing.assert_array_equal(unpack(packed), x)
