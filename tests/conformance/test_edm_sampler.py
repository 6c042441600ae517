"""EDM's own sampler run on the recorded ADM network: deterministic and stochastic.

The recorded state is float64 around a float32 network. Both widths of ours are held to the same
tolerance; the wide one shows that the sampler follows the dtype of its noise.
"""

import json
from functools import partial

import jax
import numpy as np
import pytest

from dmd2_jax.diffusion.samplers import edm_stochastic, heun
from dmd2_jax.diffusion.schedules import karras_sigmas
from dmd2_jax.families.edm import family as edm
from tests.conformance.derive import nchw, nhwc, relative

TOLERANCE = 1e-5
SCHEDULE = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "num_levels": 1000}


@pytest.fixture(scope="module")
def recorded(golden):
    """The recorded arrays, the runs' settings, and the network with its weights."""
    arrays = dict(np.load(golden / "edm_sampler" / "sampler.npz"))
    config = json.loads((golden / "edm_sampler" / "config.json").read_text())
    kwargs = json.loads((golden / "edm_networks" / "config.json").read_text())["adm"]
    family = edm.build(edm.from_edm_kwargs(kwargs) | SCHEDULE)
    return arrays, config, family, family.load(golden / "edm_networks" / "adm.safetensors")


def grid(run):
    return karras_sigmas(
        run["num_steps"], sigma_min=run["sigma_min"], sigma_max=run["sigma_max"], rho=run["rho"]
    )


@pytest.mark.parametrize("name", ["det", "sto"])
def test_karras_sigmas_equal_the_recorded_grid(recorded, name):
    arrays, config, *_ = recorded
    np.testing.assert_allclose(grid(config[name]), arrays[f"{name}_t_steps"], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_heun_ends_where_the_original_does(recorded, dtype):
    arrays, config, family, params = recorded
    with jax.enable_x64(dtype == "float64"):
        sampler = jax.jit(partial(heun, family.denoiser.x0, times=grid(config["det"])))
        noise = nhwc(arrays["latents"]).astype(dtype)
        final = sampler(params, noise, arrays.get("labels"))
        assert final.dtype == dtype
        assert relative(nchw(final), arrays["det_final"]) < TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_edm_stochastic_ends_where_the_original_does(recorded, dtype):
    arrays, config, family, params = recorded
    run = config["sto"]
    with jax.enable_x64(dtype == "float64"):
        sampler = partial(
            edm_stochastic,
            family.denoiser.x0,
            times=grid(run),
            s_churn=run["S_churn"],
            s_min=run["S_min"],
            s_max=run["S_max"],
            s_noise=run["S_noise"],
        )
        final = jax.jit(sampler)(
            params,
            nhwc(arrays["latents"]).astype(dtype),
            arrays.get("labels"),
            step_noise=nhwc(arrays["noise"]),
        )
        assert final.dtype == dtype
        assert relative(nchw(final), arrays["sto_final"]) < TOLERANCE


def test_edm_stochastic_shows_the_network_the_recorded_inputs(recorded):
    # The recorded outputs stand in for the network, so that every call can be compared.
    arrays, config, *_ = recorded
    run = config["sto"]
    sigmas = arrays["sto_net_sigma"].astype(np.float32)
    answers = nhwc(arrays["sto_net_out"])
    seen = []

    def host(x_t, t):
        seen.append((np.asarray(x_t), float(t[0])))
        return answers[len(seen) - 1]

    def x0_fn(params, x_t, t, cond):
        shape = jax.ShapeDtypeStruct(x_t.shape, x_t.dtype)
        return jax.experimental.io_callback(host, shape, x_t, t, ordered=True)

    final = edm_stochastic(
        x0_fn,
        None,
        nhwc(arrays["latents"]),
        None,
        times=grid(run),
        s_churn=run["S_churn"],
        s_min=run["S_min"],
        s_max=run["S_max"],
        s_noise=run["S_noise"],
        step_noise=nhwc(arrays["noise"]),
    )
    assert relative(nchw(final), arrays["sto_final"]) < TOLERANCE
    np.testing.assert_allclose([t for _, t in seen], sigmas, rtol=1e-6)
    for (x_t, _), expected in zip(seen, arrays["sto_net_in"], strict=True):
        assert relative(nchw(x_t), expected) < 1e-6
