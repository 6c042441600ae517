"""Which shape a cycle of several is of."""

import numpy as np

from dmd2_jax.training.shapes import shape_of_cycle

COUNTS = (600, 100, 300)


def shapes(cycles: int, seed: int = 0) -> list[int]:
    return [shape_of_cycle(COUNTS, seed, i)[0] for i in range(cycles)]


def test_shapes_come_as_often_as_they_have_examples() -> None:
    for cycles in (100, 1000):
        found = np.bincount(shapes(cycles), minlength=3) / cycles
        np.testing.assert_allclose(found, (0.6, 0.1, 0.3), atol=3 / cycles + 0.005)


def test_cycles_before_are_those_of_the_same_shape() -> None:
    order = shapes(200)
    for i in (0, 7, 64, 199):
        assert shape_of_cycle(COUNTS, 0, i) == (order[i], order[:i].count(order[i]))


def test_order_is_of_the_seed() -> None:
    assert shapes(50) == shapes(50) != shapes(50, seed=1)


def test_one_shape_is_every_cycle_s() -> None:
    assert shape_of_cycle((5,), 3, 41) == (0, 41)
