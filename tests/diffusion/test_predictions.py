"""Conversions at both ends of the time range of every schedule.

Tolerances are float32 rounding (1.2e-7) times the condition number of the conversion: the largest
size met on the way, divided by what the conversion divides by.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.diffusion.predictions import (
    KINDS,
    edm_from_x0,
    edm_scalings,
    edm_to_x0,
    from_x0,
    to_x0,
)
from dmd2_jax.diffusion.schedules import add_noise, discrete_vp, edm, rectified_flow

SCHEDULES = {
    "edm": edm(),
    "vp": discrete_vp(),
    "zero_snr": discrete_vp(zero_terminal_snr=True),
    "flow": rectified_flow(),
}
ENDS = [(name, kind, end) for name in SCHEDULES for kind in KINDS for end in (0, -1)]
# alpha = 0: eps says nothing of x_0
UNDEFINED = (("flow", "eps", -1), ("zero_snr", "eps", -1))
ROUNDING = 1.2e-7


def example(name, end):
    schedule = SCHEDULES[name]
    t = jnp.asarray(np.repeat(schedule.levels[end], 4))
    k_data, k_noise = jax.random.split(jax.random.key(3))
    x_0 = jax.random.normal(k_data, (4, 8, 8, 3))
    noise = jax.random.normal(k_noise, x_0.shape)
    return x_0, noise, add_noise(schedule, x_0, noise, t), schedule.alpha(t), schedule.sigma(t)


def exact_prediction(kind, x_0, noise, alpha, sigma):
    alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
    return {
        "eps": noise,
        "v": alpha * noise - sigma * x_0,
        "flow": noise - x_0,
        "x0": x_0,
    }[kind]


def conditioning_to_x0(kind, alpha, sigma):
    size = float(alpha[0] + sigma[0]) * 4  # of x_t; samples lie within 4 standard deviations
    if kind == "eps":
        return size / float(alpha[0])
    if kind == "v":
        return size
    return 8.0 if kind == "flow" else 1.0


@pytest.mark.parametrize("name, kind, end", [e for e in ENDS if e not in UNDEFINED])
def test_to_x0_recovers_x_0_at_both_ends(name, kind, end):
    x_0, noise, x_t, alpha, sigma = example(name, end)
    prediction = exact_prediction(kind, x_0, noise, alpha, sigma)
    result = to_x0(kind, prediction, x_t, alpha, sigma)
    tolerance = 4 * ROUNDING * conditioning_to_x0(kind, alpha, sigma)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, x_0, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name, kind, end", ENDS)
def test_from_x0_gives_the_exact_prediction_at_both_ends(name, kind, end):
    x_0, noise, x_t, alpha, sigma = example(name, end)
    result = from_x0(kind, x_0, x_t, alpha, sigma)
    size = float(alpha[0] + sigma[0]) * 4
    tolerance = 4 * ROUNDING * max(size / float(sigma[0]), size)
    expected = exact_prediction(kind, x_0, noise, alpha, sigma)
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name, kind, end", [e for e in ENDS if e not in UNDEFINED])
def test_to_x0_inverts_from_x0_at_both_ends(name, kind, end):
    # x_0 comes back as it was whatever x_t was: here an x_t that is not x_0's own.
    x_0, _, x_t, alpha, sigma = example(name, end)
    x_0 = x_0[::-1]
    back = to_x0(kind, from_x0(kind, x_0, x_t, alpha, sigma), x_t, alpha, sigma)
    tolerance = 16 * ROUNDING * conditioning_to_x0(kind, alpha, sigma)
    np.testing.assert_allclose(back, x_0, rtol=0, atol=tolerance)


def test_to_x0_eps_amplifies_errors_by_sigma_over_alpha_at_the_last_vp_time():
    x_0, noise, x_t, alpha, sigma = example("vp", -1)
    error = 1e-2
    shifted = to_x0("eps", noise + error, x_t, alpha, sigma)
    amplification = float(jnp.mean(jnp.abs(shifted - x_0))) / error
    # sqrt(1 - 0.00466) / sqrt(0.00466): the figure in the module's docstring.
    np.testing.assert_allclose(amplification, 14.61, rtol=1e-3)


@pytest.mark.parametrize("kind", ["v", "flow"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_to_x0_v_and_flow_never_amplify_errors(name, kind):
    for end in (0, -1):
        x_0, noise, x_t, alpha, sigma = example(name, end)
        prediction = exact_prediction(kind, x_0, noise, alpha, sigma)
        clean = to_x0(kind, prediction, x_t, alpha, sigma)
        shifted = to_x0(kind, prediction + 1.0, x_t, alpha, sigma)
        assert float(jnp.max(jnp.abs(shifted - clean))) < 1.0 + 1e-4


def test_to_x0_uses_each_samples_own_scalars():
    x_t = jnp.array([[2.0], [2.0]])
    eps = jnp.array([[1.0], [1.0]])
    x_0 = to_x0("eps", eps, x_t, jnp.array([1.0, 0.5]), jnp.array([1.0, 4.0]))
    np.testing.assert_array_equal(x_0, [[1.0], [-4.0]])


def test_to_x0_computes_bfloat16_predictions_in_float32():
    x_t = jnp.full((1, 1), 1.0 + 2**-7, jnp.bfloat16)
    x_0 = to_x0("eps", jnp.full((1, 1), 2**-9, jnp.bfloat16), x_t, jnp.ones(1), jnp.ones(1))
    assert x_0.dtype == jnp.float32
    assert float(x_0[0, 0]) == 1.0 + 2**-7 - 2**-9


def test_to_x0_refuses_unknown_kind():
    x, one = jnp.ones((1, 2)), jnp.ones(1)
    with pytest.raises(ValueError, match="prediction kind 'epsilon' must be one of"):
        to_x0("epsilon", x, x, one, one)


def test_edm_scalings_match_hand_computation():
    # sigma 1.2, sd 0.5: sigma^2 + sd^2 = 1.69 = 1.3^2.
    scalings = edm_scalings(jnp.array([1.2]), 0.5)
    expected = [0.25 / 1.69, 0.6 / 1.3, 1 / 1.3, np.log(1.2) / 4]
    np.testing.assert_allclose([float(c[0]) for c in scalings], expected, rtol=1e-6)


def test_edm_scalings_give_unit_variance_input():
    key = jax.random.key(0)
    x_t = 0.5 * jax.random.normal(key, (2, 10_000))
    sigma = jnp.array([0.002, 80.0])
    x_t = x_t + sigma[:, None] * jax.random.normal(jax.random.fold_in(key, 1), x_t.shape)
    _, _, c_in, _ = edm_scalings(sigma, 0.5)
    np.testing.assert_allclose(jnp.std(c_in[:, None] * x_t, axis=1), 1.0, rtol=0.03)


@pytest.mark.parametrize("end", [0, -1])
def test_edm_to_x0_inverts_edm_from_x0_at_both_ends(end):
    x_0, _, x_t, _, sigma = example("edm", end)
    prediction = edm_from_x0(x_0, x_t, sigma, 0.5)
    assert bool(jnp.all(jnp.isfinite(prediction)))
    back = edm_to_x0(prediction, x_t, sigma, 0.5)
    np.testing.assert_allclose(back, x_0, rtol=0, atol=4 * 4 * ROUNDING)


def test_edm_to_x0_of_zero_output_shrinks_towards_zero():
    x_t = jnp.array([[3.0]])
    x_0 = edm_to_x0(jnp.zeros((1, 1)), x_t, jnp.array([0.5]), 0.5)
    np.testing.assert_allclose(x_0, [[1.5]], rtol=1e-7)
