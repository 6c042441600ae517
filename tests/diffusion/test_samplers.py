"""Samplers against textbook Python loops in float64, and against closed-form solutions.

For data N(0, s^2) the best denoiser is alpha s^2 x / (alpha^2 s^2 + sigma^2) and the ODE keeps
x / sqrt(alpha^2 s^2 + sigma^2) constant.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.diffusion.samplers import ddim, edm_stochastic, euler_flow, heun, sampling_times
from dmd2_jax.diffusion.schedules import discrete_vp, edm, karras_sigmas, rectified_flow

DATA_STD = 0.7


def toy_x0(params, x_t, t, cond):
    """A nonlinear function of everything it is given."""
    return jnp.tanh(params * x_t + cond) / (1.0 + 0.1 * t.astype(jnp.float32)[:, None])


def inputs(n=0):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4, 3)).astype(np.float32)
    cond = rng.standard_normal((4, 3)).astype(np.float32)
    fresh = rng.standard_normal((n, 4, 3)).astype(np.float32)
    return np.float32(0.8), jnp.asarray(noise), jnp.asarray(cond), jnp.asarray(fresh)


def network(params, x, t, cond, dtype=np.float32):
    """toy_x0 as the samplers call it: float32 in, float64 out."""
    times = np.full(len(x), t, dtype)
    return np.asarray(toy_x0(params, x.astype(np.float32), times, cond), np.float64)


def heun_loop(params, noise, cond, times, gammas, fresh, s_noise):
    x = np.asarray(noise, np.float64) * times[0]
    for i, (t, t_next) in enumerate(pairwise(times)):
        t_hat = t + gammas[i] * t
        x = x + np.sqrt(t_hat**2 - t**2) * s_noise * fresh[i]
        slope = (x - network(params, x, t_hat, cond)) / t_hat
        x_next = x + (t_next - t_hat) * slope
        if t_next > 0:
            slope_next = (x_next - network(params, x_next, t_next, cond)) / t_next
            x_next = x + (t_next - t_hat) * (slope + slope_next) / 2
        x = x_next
    return x


def ddim_loop(params, noise, cond, alphas, sigmas, times, eta, fresh):
    x = np.asarray(noise, np.float64)
    for i in range(len(times) - 1):
        a, s, a_next, s_next = alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1]
        x_0 = network(params, x, times[i], cond, np.int32)
        eps = (x - a * x_0) / s
        std = eta * np.sqrt((1 - a_next**2) / (1 - a**2)) * np.sqrt(1 - a**2 / a_next**2)
        x = a_next * x_0 + np.sqrt(s_next**2 - std**2) * eps + std * fresh[i]
    return x


def gaussian_x0(schedule):
    def x0(params, x_t, t, cond):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return alpha * DATA_STD**2 * x_t / (alpha**2 * DATA_STD**2 + sigma**2)

    return x0


def orders(errors):
    """Observed orders of convergence when the number of steps doubles."""
    errors = np.asarray(errors)
    return np.log2(errors[:-1] / errors[1:])


def test_heun_equals_python_loop():
    params, noise, cond, _ = inputs()
    times = karras_sigmas(7)
    result = jax.jit(partial(heun, toy_x0, times=times))(params, noise, cond)
    expected = heun_loop(params, noise, cond, times, np.zeros(7), np.zeros((7, 4, 3)), 1.0)
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=2e-6)


def test_edm_stochastic_equals_python_loop():
    params, noise, cond, fresh = inputs(7)
    times = karras_sigmas(7)
    result = edm_stochastic(
        toy_x0, params, noise, cond, times=times, s_churn=2.0, s_min=0.05, s_max=50.0,
        s_noise=1.003, step_noise=fresh,
    )  # fmt: skip
    gammas = np.where((times[:-1] >= 0.05) & (times[:-1] <= 50.0), 2.0 / 7, 0.0)
    assert 0 < np.count_nonzero(gammas) < 7
    expected = heun_loop(params, noise, cond, times, gammas, fresh, 1.003)
    np.testing.assert_allclose(result, expected, rtol=5e-6, atol=5e-6)


def test_edm_stochastic_limits_churn_to_sqrt_two():
    params, noise, cond, fresh = inputs(4)
    times = karras_sigmas(4)
    result = edm_stochastic(toy_x0, params, noise, cond, times=times, s_churn=1e6, step_noise=fresh)
    expected = heun_loop(params, noise, cond, times, np.full(4, np.sqrt(2) - 1), fresh, 1.0)
    np.testing.assert_allclose(result, expected, rtol=5e-6, atol=5e-6)


def test_edm_stochastic_without_churn_is_heun():
    params, noise, cond, fresh = inputs(5)
    times = karras_sigmas(5)
    result = edm_stochastic(toy_x0, params, noise, cond, times=times, s_churn=0.0, step_noise=fresh)
    np.testing.assert_array_equal(result, heun(toy_x0, params, noise, cond, times=times))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_equals_python_loop(eta):
    params, noise, cond, fresh = inputs(5)
    schedule = discrete_vp()
    times = np.array([999, 700, 450, 200, 30, -1])
    result = jax.jit(
        partial(ddim, toy_x0, schedule=schedule, times=times, eta=eta, step_noise=fresh)
    )(params, noise, cond)
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.append(np.sqrt(np.cumprod(1 - beta))[times[:-1]], 1.0)
    sigmas = np.sqrt(1 - alphas**2)
    expected = ddim_loop(params, noise, cond, alphas, sigmas, times, eta, fresh)
    np.testing.assert_allclose(result, expected, rtol=5e-6, atol=5e-6)


def test_ddim_to_the_clean_end_returns_the_last_x_0():
    schedule = discrete_vp()
    params, noise, cond, _ = inputs()
    x_0 = toy_x0(params, noise, jnp.full(4, 600, jnp.int32), cond)
    result = ddim(toy_x0, params, noise, cond, schedule=schedule, times=np.array([600, -1]))
    np.testing.assert_allclose(result, x_0, rtol=1e-6)


def test_ddim_gives_x0_fn_times_of_the_schedules_dtype():
    seen = []

    def x0_fn(params, x_t, t, cond):
        seen.append((t.dtype, t.shape))
        return x_t

    noise = jnp.ones((4, 3))
    for schedule in (discrete_vp(), rectified_flow()):
        ddim(x0_fn, None, noise, None, schedule=schedule, times=sampling_times(schedule, 3))
    assert seen == [(jnp.int32, (4,)), (jnp.float32, (4,))]


def test_euler_flow_equals_velocity_loop():
    params, noise, cond, _ = inputs()
    times = sampling_times(rectified_flow(shift=3.0), 6)
    x = np.asarray(noise, np.float64)
    for t, t_next in pairwise(times):
        velocity = (x - network(params, x, t, cond)) / t
        x = x + (t_next - t) * velocity
    result = euler_flow(toy_x0, params, noise, cond, times=times)
    np.testing.assert_allclose(result, x, rtol=2e-6, atol=2e-6)


def test_heun_converges_with_order_two():
    errors = []
    with jax.enable_x64(True):
        noise = jnp.ones((1, 1), jnp.float64)
        for n in (32, 64, 128):
            times = karras_sigmas(n, sigma_min=1e-3, sigma_max=10.0)
            x_0 = heun(gaussian_x0(edm()), None, noise, None, times=times)
            assert x_0.dtype == jnp.float64
            exact = 10.0 * DATA_STD / np.sqrt(DATA_STD**2 + 10.0**2)
            errors.append(abs(float(x_0[0, 0]) - exact))
    assert np.all(np.abs(orders(errors) - 2.0) < 0.15), (errors, orders(errors))


def test_heun_converges_with_order_two_on_a_flow():
    errors = []
    with jax.enable_x64(True):
        noise = jnp.ones((1, 1), jnp.float64)
        for n in (32, 64, 128):
            times = sampling_times(rectified_flow(shift=2.0, num_levels=128), n)
            x_0 = heun(gaussian_x0(rectified_flow()), None, noise, None, times=times)
            errors.append(abs(float(x_0[0, 0]) - DATA_STD))
    assert np.all(np.abs(orders(errors) - 2.0) < 0.15), (errors, orders(errors))


def test_euler_flow_converges_with_order_one():
    noise = jnp.ones((1, 1))
    errors = []
    for n in (32, 64, 128):
        times = np.linspace(1.0, 0.0, n + 1)
        x_0 = euler_flow(gaussian_x0(rectified_flow()), None, noise, None, times=times)
        errors.append(abs(float(x_0[0, 0]) - DATA_STD))
    assert np.all(np.abs(orders(errors) - 1.0) < 0.15), (errors, orders(errors))


def test_ddim_converges_with_order_one():
    schedule = discrete_vp()
    noise = jnp.ones((1, 1))
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_squared = np.cumprod(1 - beta)
    variance = alpha_squared * DATA_STD**2 + 1 - alpha_squared
    exact = np.sqrt(variance[9] / variance[969])
    errors = []
    for n in (15, 30, 60):
        times = np.linspace(969, 9, n + 1)
        x_0 = ddim(gaussian_x0(schedule), None, noise, None, schedule=schedule, times=times)
        errors.append(abs(float(x_0[0, 0]) - exact))
    assert np.all(np.abs(orders(errors) - 1.0) < 0.15), (errors, orders(errors))


@pytest.mark.parametrize(
    "sampler",
    [
        partial(edm_stochastic, gaussian_x0(edm()), times=karras_sigmas(160), s_churn=20.0),
        partial(
            ddim,
            gaussian_x0(discrete_vp()),
            schedule=discrete_vp(),
            times=sampling_times(discrete_vp(), 250),
            eta=1.0,
        ),
    ],
    ids=["edm_stochastic", "ddim"],
)
def test_stochastic_samplers_give_the_data_distribution(sampler):
    k_start, k_steps = jax.random.split(jax.random.key(0))
    noise = jax.random.normal(k_start, (20_000, 1))
    x_0 = np.asarray(jax.jit(sampler)(None, noise, None, key=k_steps))
    np.testing.assert_allclose(x_0.std(), DATA_STD, rtol=0.02)
    assert abs(x_0.mean()) < 0.02
    # Fresh noise has replaced the start: the ODE would give a correlation of 1.
    assert np.corrcoef(x_0[:, 0], noise[:, 0])[0, 1] < 0.5


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_key_equals_explicit_noise_of_that_key(eta):
    params, noise, cond, _ = inputs()
    key = jax.random.key(5)
    fresh = jnp.stack([jax.random.normal(jax.random.fold_in(key, i), (4, 3)) for i in range(3)])
    run = partial(
        ddim, toy_x0, params, noise, cond, schedule=discrete_vp(), times=[900, 500, 200, -1],
        eta=eta,
    )  # fmt: skip
    np.testing.assert_allclose(run(key=key), run(step_noise=fresh), rtol=1e-6)


def test_heun_calls_the_network_two_n_minus_one_times_from_one_trace():
    calls, traces = [], []

    def x0_fn(params, x_t, t, cond):
        traces.append(t)
        jax.debug.callback(lambda t: calls.append(float(t)), t[0], ordered=True)
        return jnp.zeros_like(x_t)

    times = karras_sigmas(4)
    jax.block_until_ready(heun(x0_fn, None, jnp.ones((2, 3)), None, times=times))
    jax.effects_barrier()
    assert len(traces) == 1
    np.testing.assert_allclose(calls, times[[0, 1, 1, 2, 2, 3, 3]], rtol=1e-6)


def test_samplers_state_follows_noise_and_network_stays_float32():
    seen = []

    def x0_fn(params, x_t, t, cond):
        seen.append((x_t.dtype, t.dtype))
        return 0.5 * x_t

    times = karras_sigmas(3)
    assert heun(x0_fn, None, jnp.ones((1, 2), jnp.bfloat16), None, times=times).dtype == jnp.float32
    with jax.enable_x64(True):
        assert (
            heun(x0_fn, None, jnp.ones((1, 2), jnp.float64), None, times=times).dtype == jnp.float64
        )
    assert seen == [(jnp.float32, jnp.float32)] * 2


@pytest.mark.parametrize(
    "schedule, num_steps, expected",
    [
        (discrete_vp(), 4, [999, 749, 499, 249, -1]),
        (discrete_vp(num_levels=10), 3, [9, 6, 2, -1]),
        (rectified_flow(), 4, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (rectified_flow(shift=3.0, num_levels=4), 2, [1.0, 0.75, 0.0]),
        (edm(sigma_min=1.0, sigma_max=4.0, rho=1.0, num_levels=4), 4, [4.0, 3.0, 2.0, 1.0, 0.0]),
    ],
)
def test_sampling_times_are_trailing(schedule, num_steps, expected):
    np.testing.assert_allclose(sampling_times(schedule, num_steps), expected, rtol=1e-6)


NOISE = jnp.ones((2, 3))
STEP_NOISE = jnp.ones((2, 2, 3))
VP = {"schedule": discrete_vp(), "times": [999, 500, -1]}


@pytest.mark.parametrize(
    "sampler, options, message",
    [
        (heun, {"times": [1.0, 0.5]}, "that ends in 0"),
        (heun, {"times": [1.0, 2.0, 0.0]}, "must be a decreasing grid"),
        (heun, {"times": [0.0]}, "must be a decreasing grid"),
        (heun, {"times": np.array([[1.0, 0.0]])}, "must be a decreasing grid"),
        (heun, {"times": [float("nan"), 0.0]}, "must be a decreasing grid"),
        (edm_stochastic, {"times": [1.0, 0.5, 0.0], "s_churn": -1.0}, "s_churn=-1.0 must be >= 0"),
        (edm_stochastic, {"times": [1.0, 0.5, 0.0], "s_churn": 1.0}, "got neither of step_noise"),
        (
            edm_stochastic,
            {"times": [1.0, 0.0], "s_churn": 1.0, "step_noise": STEP_NOISE},
            r"expected \[steps, b, ...\] = \(1, 2, 3\)",
        ),
        (ddim, VP | {"eta": 1.5}, r"eta=1.5 must be in \[0, 1\]"),
        (ddim, VP | {"eta": 1.0}, "got neither of step_noise"),
        (
            ddim,
            VP | {"eta": 1.0, "step_noise": STEP_NOISE, "key": jax.random.key(0)},
            "got both of step_noise",
        ),
        (ddim, VP | {"times": [500, 500, -1]}, "must be a decreasing grid"),
        (euler_flow, {"times": [2.0, 0.0]}, r"expected within \[0, 1\]"),
    ],
)
def test_samplers_refuse_bad_values(sampler, options, message):
    with pytest.raises(ValueError, match=message):
        sampler(toy_x0, np.float32(1.0), NOISE, NOISE, **options)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_sampling_times_refuses_more_steps_than_levels(num_steps):
    with pytest.raises(ValueError, match=r"must be in 1..1000"):
        sampling_times(discrete_vp(), num_steps)
