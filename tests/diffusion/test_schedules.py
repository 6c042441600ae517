import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.diffusion.schedules import add_noise, discrete_vp, edm, karras_sigmas, rectified_flow

SCHEDULES = {
    "edm": edm(),
    "scaled_linear": discrete_vp(),
    "linear": discrete_vp(betas="linear", beta_start=1e-4, beta_end=0.02),
    "cosine": discrete_vp(betas="cosine"),
    "zero_terminal_snr": discrete_vp(zero_terminal_snr=True),
    "flow": rectified_flow(),
    "shifted_flow": rectified_flow(shift=3.0),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedule_noise_to_signal_ratio_increases_along_levels(schedule):
    t = jnp.asarray(schedule.levels)
    alpha, sigma = np.asarray(schedule.alpha(t)), np.asarray(schedule.sigma(t))
    # sigma / (alpha + sigma) is monotone in sigma / alpha and finite at alpha = 0.
    share = sigma.astype(np.float64) / (alpha.astype(np.float64) + sigma)
    assert np.all(np.diff(share) > 0)
    assert np.all(sigma > 0)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedule_functions_return_float32_under_jit(schedule):
    t = jnp.asarray(schedule.levels[[0, 7, -1]])
    for function in (schedule.alpha, schedule.sigma, schedule.prior_scale):
        jitted, eager = jax.jit(function)(t), function(t)
        assert jitted.dtype == jnp.float32
        np.testing.assert_array_equal(jitted, eager)


def test_edm_levels_span_sigma_range_exactly():
    levels = edm(sigma_min=0.01, sigma_max=50.0, num_levels=64).levels
    assert levels.dtype == np.float32
    assert levels.shape == (64,)
    assert levels[0] == np.float32(0.01)
    assert levels[-1] == np.float32(50.0)


def test_edm_time_is_sigma():
    schedule, t = edm(), jnp.array([0.002, 1.0, 80.0])
    np.testing.assert_array_equal(schedule.sigma(t), t)
    np.testing.assert_array_equal(schedule.prior_scale(t), t)
    np.testing.assert_array_equal(schedule.alpha(t), [1.0, 1.0, 1.0])


def test_edm_levels_with_rho_one_are_uniform():
    levels = edm(sigma_min=1.0, sigma_max=4.0, rho=1.0, num_levels=4).levels
    np.testing.assert_allclose(levels, [1.0, 2.0, 3.0, 4.0], rtol=1e-7)


def test_discrete_vp_with_zero_terminal_snr_matches_hand_computation():
    # alpha is 0.9, then sqrt(0.9 * 0.8), ...; shifted by the last, scaled so that the first stays.
    betas = {"betas": "linear", "beta_start": 0.1, "beta_end": 0.3, "num_levels": 3}
    schedule = discrete_vp(**betas, zero_terminal_snr=True)
    root = np.sqrt([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])
    expected = (root - root[2]) * root[0] / (root[0] - root[2])
    alpha = np.asarray(schedule.alpha(jnp.arange(3)))
    np.testing.assert_allclose(alpha, expected, rtol=1e-6)
    assert alpha[2] == 0.0 and np.asarray(schedule.sigma(jnp.arange(3)))[2] == 1.0


@pytest.mark.parametrize("name", ["scaled_linear", "linear", "zero_terminal_snr"])
def test_discrete_vp_preserves_variance(name):
    schedule = SCHEDULES[name]
    t = jnp.asarray(schedule.levels)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1.0, atol=3e-7)


def test_discrete_vp_linear_matches_hand_computation():
    schedule = discrete_vp(betas="linear", beta_start=0.1, beta_end=0.3, num_levels=3)
    expected = np.sqrt([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])
    assert schedule.levels.dtype == np.int32
    np.testing.assert_allclose(schedule.alpha(jnp.arange(3)), expected, rtol=1e-6)
    np.testing.assert_allclose(schedule.sigma(jnp.arange(3)), np.sqrt(1 - expected**2), rtol=1e-6)


def test_discrete_vp_cosine_matches_hand_computation():
    # alpha^2 is cos^2 at (t + 1) / n over cos^2 at 0, until the last beta meets its bound.
    schedule = discrete_vp(betas="cosine", num_levels=4)
    wave = np.cos((np.arange(5) / 4 + 0.008) / 1.008 * np.pi / 2) ** 2
    expected = np.sqrt([*(wave[1:4] / wave[0]), wave[3] / wave[0] * 0.001])
    np.testing.assert_allclose(schedule.alpha(jnp.arange(4)), expected, rtol=1e-6)


def test_discrete_vp_refuses_float_times():
    with pytest.raises(ValueError, match="expected an integer dtype"):
        discrete_vp().alpha(jnp.array([0.5]))


def test_rectified_flow_shift_matches_hand_computation():
    # u = 1/4, 1/2, 3/4, 1 -> 3u / (1 + 2u)
    levels = rectified_flow(shift=3.0, num_levels=4).levels
    np.testing.assert_allclose(levels, [0.5, 0.75, 0.9, 1.0], rtol=1e-7)


def test_rectified_flow_ends_at_pure_noise():
    schedule = rectified_flow()
    last = jnp.asarray(schedule.levels[-1:])
    assert schedule.alpha(last)[0] == 0.0
    assert schedule.sigma(last)[0] == 1.0
    assert schedule.levels[0] == np.float32(1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_add_noise_has_the_schedules_mean_and_std(schedule):
    noise = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    t = jnp.asarray(schedule.levels[[100, 600]])
    x_t = np.asarray(add_noise(schedule, jnp.full(noise.shape, 2.0), noise, t))
    alpha, sigma = np.asarray(schedule.alpha(t)), np.asarray(schedule.sigma(t))
    standard_error = sigma / np.sqrt(64 * 64 * 3)
    assert np.all(np.abs(x_t.mean((1, 2, 3)) - 2.0 * alpha) < 4 * standard_error)
    np.testing.assert_allclose(x_t.std((1, 2, 3)), sigma, rtol=0.03)


def test_add_noise_lifts_bfloat16_to_float32():
    x = jnp.ones((1, 2), jnp.bfloat16)
    assert add_noise(edm(), x, x, jnp.ones(1)).dtype == jnp.float32


def test_karras_sigmas_match_hand_computation():
    # rho 2: square roots 3, 2, 1.
    np.testing.assert_allclose(
        karras_sigmas(3, sigma_min=1.0, sigma_max=9.0, rho=2.0), [9.0, 4.0, 1.0, 0.0], rtol=1e-15
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: edm(sigma_min=80.0, sigma_max=80.0), "sigma_min=80.0, sigma_max=80.0 must"),
        (lambda: edm(sigma_min=0.0), "sigma_min=0.0"),
        (lambda: edm(sigma_max=float("nan")), "sigma_max=nan"),
        (lambda: edm(rho=0.0), "rho=0.0 must be a positive"),
        (lambda: edm(num_levels=1), "got 1 noise levels, expected at least 2"),
        (lambda: discrete_vp(num_levels=1), "got 1 noise levels, expected at least 2"),
        (lambda: discrete_vp(beta_start=0.0), "beta_start=0.0"),
        (lambda: discrete_vp(beta_end=1.0), "beta_end=1.0"),
        (lambda: discrete_vp(beta_start=0.02, beta_end=0.01), "beta_start=0.02, beta_end=0.01"),
        (lambda: discrete_vp(betas="sigmoid"), "betas='sigmoid' must be"),
        (lambda: rectified_flow(shift=0.0), "shift=0.0 must be a positive"),
        (lambda: rectified_flow(num_levels=1), "got 1 noise levels, expected at least 2"),
        (lambda: karras_sigmas(1), "got 1 noise levels, expected at least 2"),
    ],
)
def test_schedules_refuse_bad_values_with_a_remedy(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "try" in str(error.value) or "uses" in str(error.value)
