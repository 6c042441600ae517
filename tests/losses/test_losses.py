import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.losses.adversarial import discriminator_adversarial_loss, generator_adversarial_loss
from dmd2_jax.losses.denoising import denoising_loss, denoising_weight
from dmd2_jax.losses.distribution_matching import distribution_matching_loss
from dmd2_jax.losses.regression import feature_distance, regression_loss, squared_error


def images(seed, b=3):
    return jax.random.normal(jax.random.key(seed), (b, 4, 4, 2))


def test_distribution_matching_gradient_is_the_normalised_difference():
    x_0, teacher, critic = images(0), images(1), images(2)
    gradient = jax.grad(lambda x: distribution_matching_loss(x, teacher, critic)[0])(x_0)
    for i in range(3):
        expected = (critic[i] - teacher[i]) / np.abs(x_0[i] - teacher[i]).mean() / x_0.size
        np.testing.assert_allclose(gradient[i], expected, rtol=1e-4, atol=1e-7)


def test_distribution_matching_trains_neither_score_network():
    x_0, teacher, critic = images(0), images(1), images(2)
    gradients = jax.grad(lambda t, c: distribution_matching_loss(x_0, t, c)[0], argnums=(0, 1))(
        teacher, critic
    )
    assert all(float(jnp.abs(g).max()) == 0.0 for g in gradients)


def test_distribution_matching_is_zero_where_teacher_and_critic_agree():
    x_0, teacher = images(0), images(1)
    loss, metrics = distribution_matching_loss(x_0, teacher, teacher)
    assert float(loss) == 0.0 and float(metrics["dm_grad_norm"]) == 0.0


def test_distribution_matching_floor_keeps_the_gradient_finite():
    x_0 = images(0)
    teacher = x_0.at[1:].add(1.0)  # sample 0: the normaliser vanishes
    loss_fn = jax.value_and_grad(
        lambda x: distribution_matching_loss(x, teacher, images(2), normalizer_floor=1e-2),
        has_aux=True,
    )
    (loss, metrics), gradient = loss_fn(x_0)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert int(metrics["dm_floor_hits"]) == 1
    expected = (images(2)[0] - x_0[0]) / 1e-2 / x_0.size
    np.testing.assert_allclose(gradient[0], expected, rtol=1e-4, atol=1e-5)


def test_denoising_loss_by_hand():
    x_0 = jnp.zeros((2, 1, 1, 2))
    prediction = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(2, 1, 1, 2)
    loss, _ = denoising_loss(prediction, x_0, weight=jnp.array([1.0, 10.0]))
    np.testing.assert_allclose(loss, (1 + 4 + 90 + 160) / 4)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("edm", [1 / 4 + 4, 1 / 9 + 4]),
        ("eps", [0.25 / 4, 1 / 9]),
        ("x0", [1.0, 1.0]),
        ("flow", [(0.5 + 2) ** 2 / 4, 16 / 9]),
    ],
)
def test_denoising_weight_by_hand(kind, expected):
    weight = denoising_weight(kind, jnp.array([0.5, 1.0]), jnp.array([2.0, 3.0]))
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_denoising_weight_eps_is_the_squared_error_of_eps():
    x_0, eps, guess = images(0), images(1), images(2)
    alpha, sigma = 0.6, 0.8
    x_t = alpha * x_0 + sigma * eps
    weight = denoising_weight("eps", jnp.full(3, alpha), jnp.full(3, sigma))
    loss, _ = denoising_loss((x_t - sigma * guess) / alpha, x_0, weight=weight)
    np.testing.assert_allclose(loss, jnp.mean((guess - eps) ** 2), rtol=1e-5)


def test_denoising_weight_refuses_unknown_kinds():
    with pytest.raises(ValueError, match="choose one of"):
        denoising_weight("snr", jnp.ones(1), jnp.ones(1))


def test_adversarial_losses_by_hand():
    real, fake = jnp.array([2.0, -1.0]), jnp.array([0.5, 3.0])
    loss, _ = discriminator_adversarial_loss(real, fake)
    expected = np.mean(np.log1p(np.exp(fake))) + np.mean(np.log1p(np.exp(-real)))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    loss, _ = generator_adversarial_loss(fake)
    np.testing.assert_allclose(loss, np.mean(np.log1p(np.exp(-fake))), rtol=1e-6)


def test_adversarial_losses_stay_finite_at_large_logits():
    far = jnp.array([1e4, -1e4])
    np.testing.assert_allclose(generator_adversarial_loss(far)[0], 5e3, rtol=1e-6)
    np.testing.assert_allclose(discriminator_adversarial_loss(far, far)[0], 1e4, rtol=1e-6)


def test_regression_loss_is_the_mean_squared_error():
    np.testing.assert_allclose(
        regression_loss(images(0), images(1))[0], np.mean((images(0) - images(1)) ** 2), rtol=1e-6
    )


def test_feature_distance_ignores_the_length_of_features():
    distance = feature_distance(lambda x: (x, 2.0 * x[:, ::2, ::2]))
    np.testing.assert_allclose(distance(images(0), 3.0 * images(0)), np.zeros(3), atol=1e-6)
    opposite = distance(images(0), -images(0))  # unit vectors at distance 2, squared, two layers
    np.testing.assert_allclose(opposite, np.full(3, 8.0), rtol=1e-4)


def test_squared_error_is_per_sample():
    a = jnp.zeros((2, 2, 2, 1)).at[1].set(3.0)
    np.testing.assert_allclose(squared_error(a, jnp.zeros_like(a)), [0.0, 9.0])
