"""The recorded LCM scheduler: our few-step student's steps are its steps.

LCM's boundary scalings differ from "x_0 is x_0" by less than 1e-7 at every time a student has, so
one comparison covers both.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.predictions import to_x0
from dmd2_jax.diffusion.samplers import ddim
from dmd2_jax.diffusion.schedules import add_noise
from dmd2_jax.distill import backward_simulation, generate
from dmd2_jax.families.published.scheduler import ddim_times, lcm_times, read_scheduler
from tests.conformance.derive import nchw, nhwc, relative

TOLERANCE = 1e-5


class Recorded:
    """The recorded arrays, and the recorded network outputs as a denoiser."""

    def __init__(self, golden):
        folder = golden / "lcm_scheduler"
        self.config = json.loads((folder / "config.json").read_text())
        self.arrays = arrays = dict(np.load(folder / "scheduler.npz"))
        self.schedule, self.kind = read_scheduler(self.config["lcm"])
        self.times = tuple(map(float, arrays["lcm_timesteps"]))
        outputs, noises = nhwc(arrays["step_model_outputs"]), nhwc(arrays["step_noises"])
        self.noise = jnp.concatenate([nhwc(arrays["step_sample0"])[None], noises[:-1]])
        steps = jnp.asarray(arrays["lcm_timesteps"], jnp.int32)

        def x0(params, x_t, t, cond):
            raw = outputs[jnp.argmax(steps == t[0])]
            return to_x0(self.kind, raw, x_t, self.schedule.alpha(t), self.schedule.sigma(t))

        self.student = Denoiser(x0, None, None, self.schedule, None)


@pytest.fixture(scope="module")
def recorded(golden):
    return Recorded(golden)


@pytest.mark.parametrize(
    ("section", "array"), [("ddim", "alphas_cumprod"), ("lcm", "lcm_alphas_cumprod")]
)
def test_schedule_of_the_config_has_the_recorded_table(recorded, section, array):
    schedule, _ = read_scheduler(recorded.config[section])
    squared = np.asarray(schedule.alpha(jnp.asarray(schedule.levels)), np.float64) ** 2
    assert relative(squared, recorded.arrays[array]) < 1e-6


def test_prior_scale_is_the_recorded_init_noise_sigma(recorded):
    t = jnp.asarray(recorded.schedule.levels[-1:])
    assert recorded.schedule.prior_scale(t)[0] == recorded.arrays["init_noise_sigma"]


def test_add_noise_equals_the_recorded(recorded):
    arrays = recorded.arrays
    t = jnp.asarray(arrays["addnoise_timesteps"], jnp.int32)
    x_t = add_noise(
        recorded.schedule, nhwc(arrays["addnoise_x0"]), nhwc(arrays["addnoise_noise"]), t
    )
    assert relative(nchw(x_t), arrays["addnoise_lcm"]) < 1e-6


def test_lcm_times_are_the_recorded_default(recorded):
    times = lcm_times(recorded.config["lcm"], 4)
    np.testing.assert_array_equal(times, recorded.arrays["lcm_default_timesteps_4_of_50"])


@pytest.mark.parametrize(
    ("spacing", "steps", "array"),
    [("trailing", 4, "ddim_trailing_timesteps_4"), ("leading", 50, "ddim_leading_timesteps_50")],
)
def test_ddim_times_are_the_recorded_ones(recorded, spacing, steps, array):
    times = ddim_times(recorded.config["ddim"] | {"timestep_spacing": spacing}, steps)
    np.testing.assert_array_equal(times[:-1], recorded.arrays[array])


def test_ddim_ends_at_the_recorded_final_alpha(recorded):
    # One step from the first time to the grid's end, with eps = 0: x_0 = x / alpha, then
    # x' = alpha_end x_0.
    end = ddim_times(recorded.config["ddim"], 1)
    x = nhwc(recorded.arrays["step_sample0"])

    def clean(params, x_t, t, cond):
        return x_t / recorded.schedule.alpha(t)[:, None, None, None]

    actual = ddim(clean, None, x, None, schedule=recorded.schedule, times=end)
    table = recorded.arrays["alphas_cumprod"].astype(np.float64)
    scale = np.sqrt(recorded.arrays["ddim_final_alpha_cumprod"] / table[int(end[0])])
    assert relative(actual, scale * np.asarray(x)) < TOLERANCE


@pytest.mark.parametrize("step", [1, 2, 3])
def test_backward_simulation_makes_the_recorded_inputs(recorded, step):
    simulate = functools.partial(backward_simulation, recorded.student, times=recorded.times)
    x_t = jax.jit(simulate)(None, recorded.noise, step, None)
    assert relative(nchw(x_t), recorded.arrays["lcm_prev_sample"][step - 1]) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_generate_makes_the_recorded_samples(recorded, steps):
    sample = functools.partial(generate, recorded.student, times=recorded.times[:steps])
    x_0 = jax.jit(sample)(None, recorded.noise[:steps], None)
    assert relative(nchw(x_0), recorded.arrays["lcm_denoised"][steps - 1]) < TOLERANCE


def test_boundary_scalings_leave_x0_as_it_is(recorded):
    np.testing.assert_allclose(recorded.arrays["lcm_c_skip_c_out"][:, 0], 0.0, atol=1e-7)
    np.testing.assert_allclose(recorded.arrays["lcm_c_skip_c_out"][:, 1], 1.0, atol=1e-7)
