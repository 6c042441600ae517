"""The DDIM part of the recorded Stable Diffusion schedulers."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.diffusion.predictions import to_x0
from dmd2_jax.diffusion.samplers import ddim, sampling_times
from dmd2_jax.diffusion.schedules import add_noise, discrete_vp
from tests.conformance.derive import nchw, nhwc, relative

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recorded(golden):
    """The recorded arrays and the schedule of their configuration."""
    config = json.loads((golden / "lcm_scheduler" / "config.json").read_text())["ddim"]
    schedule = discrete_vp(
        betas=config["beta_schedule"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        num_levels=config["num_train_timesteps"],
    )
    assert config["set_alpha_to_one"] is False  # the sampler ends in time 0, not in clean data
    return dict(np.load(golden / "lcm_scheduler" / "scheduler.npz")), schedule


def recorded_x0_fn(arrays, schedule):
    """Return the recorded network outputs (eps) as a denoiser: which one, t says."""
    times = jnp.asarray(arrays["ddim_trailing_timesteps_4"], jnp.int32)
    outputs = jnp.asarray(nhwc(arrays["step_model_outputs"]))

    def x0_fn(params, x_t, t, cond):
        eps = outputs[jnp.argmax(times == t[0])]
        return to_x0("eps", eps, x_t, schedule.alpha(t), schedule.sigma(t))

    return x0_fn


def test_discrete_vp_alphas_equal_the_recorded_table(recorded):
    arrays, schedule = recorded
    squared = np.asarray(schedule.alpha(jnp.asarray(schedule.levels)), np.float64) ** 2
    np.testing.assert_allclose(squared, arrays["alphas_cumprod"], rtol=2e-6)
    assert relative(squared, arrays["alphas_cumprod"]) < 1e-6


def test_add_noise_equals_the_recorded(recorded):
    arrays, schedule = recorded
    t = jnp.asarray(arrays["addnoise_timesteps"], jnp.int32)
    x_t = add_noise(schedule, nhwc(arrays["addnoise_x0"]), nhwc(arrays["addnoise_noise"]), t)
    assert relative(nchw(x_t), arrays["addnoise_ddim"]) < 1e-6


def test_sampling_times_equal_the_recorded_trailing_steps(recorded):
    arrays, schedule = recorded
    np.testing.assert_array_equal(
        sampling_times(schedule, 4)[:-1], arrays["ddim_trailing_timesteps_4"]
    )


@pytest.mark.parametrize("eta", [0, 1])
def test_ddim_ends_every_chain_where_the_original_does(recorded, eta):
    # A chain cut after k steps must give the recorded sample of step k.
    arrays, schedule = recorded
    chain = np.append(arrays["ddim_trailing_timesteps_4"], 0)
    for steps in range(1, len(chain)):
        sampler = partial(
            ddim,
            recorded_x0_fn(arrays, schedule),
            schedule=schedule,
            times=chain[: steps + 1],
            eta=float(eta),
            step_noise=nhwc(arrays["step_noises"])[:steps],
        )
        x = jax.jit(sampler)(None, nhwc(arrays["step_sample0"]), None)
        assert relative(nchw(x), arrays[f"ddim_eta{eta}_prev_sample"][steps - 1]) < TOLERANCE


def test_to_x0_equals_the_recorded_prediction(recorded):
    arrays, schedule = recorded
    x_t = nhwc(arrays["step_sample0"])
    t = jnp.full(len(x_t), arrays["ddim_trailing_timesteps_4"][0], jnp.int32)
    x_0 = recorded_x0_fn(arrays, schedule)(None, x_t, t, None)
    assert relative(nchw(x_0), arrays["ddim_eta0_pred_original_sample"][0]) < TOLERANCE


def test_ddim_step_of_the_leading_grid_equals_the_recorded(recorded):
    arrays, schedule = recorded
    times = arrays["ddim_leading_timesteps_50"][:2]

    eps = nhwc(arrays["step_model_outputs"][0])

    def x0_fn(params, x_t, t, cond):
        return to_x0("eps", eps, x_t, schedule.alpha(t), schedule.sigma(t))

    noise = nhwc(arrays["step_sample0"])
    x = ddim(x0_fn, None, noise, None, schedule=schedule, times=times)
    assert relative(nchw(x), arrays["ddim_leading50_first_prev_sample"]) < TOLERANCE
