"""A reward: its gradient is the user's function's, and what is none is refused by name."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.distill.objectives import Denoising, Reward, dmd2
from tests.distill import toy
from tests.distill.objectives import gaussians

X_0 = jnp.asarray([[1.0], [2.0], [-3.0]])
COND = jnp.asarray([0.0, 1.0, 2.0])


def near(x_0, cond):
    return -jnp.square(x_0[:, 0] - cond)


def test_the_loss_is_minus_the_mean_reward() -> None:
    one = Reward(function=near)

    def loss(x):
        return one.value(gaussians.view(x, {}, one, cond=COND), {})

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(X_0)
    np.testing.assert_allclose(value, (1.0 + 1.0 + 25.0) / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["reward"], -27.0 / 3, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, 0], np.array([2.0, 2.0, -10.0]) / 3, rtol=1e-6)
    one.try_out(X_0, COND)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, cond: x, r"float32\[3, 1\], expected one floating number a sample, \[3\]"),
        (lambda x, cond: jnp.mean(x), r"float32\[\], expected one floating"),
        (lambda x, cond: jnp.arange(3), r"int32\[3\], expected one floating"),
        (lambda x, cond: jnp.log(x[:, 0]), "has a reward that is not finite"),
        (lambda x, cond: jnp.sqrt(0.0 * x[:, 0]), "has a gradient that is not finite"),
    ],
)
def test_a_reward_that_is_none_is_refused(function, message: str) -> None:
    with pytest.raises(Refused, match=message):
        Reward(function=function).try_out(X_0, COND)


def test_a_module_of_ones_own_is_found_by_its_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_lab_of_rewards").mkdir()
    (tmp_path / "my_lab_of_rewards" / "near.py").write_text(
        "def reward(x_0, cond):\n    return -abs(x_0[:, 0] - cond)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    one = dmd2(objectives=("reward:weight=0.5:function=my_lab_of_rewards.near",))[-1]
    assert one.weight == 0.5
    np.testing.assert_array_equal(one.rewards(X_0, COND), [-1.0, -1.0, -5.0])
    sys.modules.pop("my_lab_of_rewards.near", None)
    for name, message in (
        ("", "has no function"),
        ("near", "expected one of"),
        ("my_lab_of_rewards.nothing", "is no module that Python finds"),
    ):
        with pytest.raises(Refused, match=message):
            dataclasses.replace(toy.config(), objectives=(Reward(function=name), Denoising()))
