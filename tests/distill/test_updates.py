"""The parts of an optimiser step, against the formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.distill.updates import cosine, moving_average, ramped_decay, taken_if


@pytest.mark.parametrize(
    ("progress", "factor"), [(-1.0, 1.0), (0.0, 1.0), (1 / 3, 0.75), (0.5, 0.5), (2.0, 0.0)]
)
def test_cosine_goes_from_one_to_zero(progress: float, factor: float) -> None:
    assert float(cosine(jnp.float32(progress))) == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize(("n", "decay"), [(0, 0.1), (8, 0.5), (10_000, 0.99)])
def test_ramped_decay_is_that_of_a_short_run_first(n: int, decay: float) -> None:
    assert float(ramped_decay(0.99, jnp.float32(n))) == pytest.approx(decay, rel=1e-6)


def test_moving_average_keeps_the_decays_part() -> None:
    found = moving_average({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 2.0])}, 0.75)
    np.testing.assert_allclose(found["w"], [1.5, 2.0], rtol=1e-6)


@pytest.mark.parametrize(("finite", "value"), [(True, 2.0), (False, 1.0)])
def test_taken_if_takes_all_or_nothing(finite: bool, value: float) -> None:
    new, old = ({"w": jnp.full(2, x), "n": jnp.float32(x)} for x in (2.0, 1.0))
    found = taken_if(jnp.bool_(finite), new, old)
    np.testing.assert_array_equal(found["w"], [value, value])
    assert float(found["n"]) == value
