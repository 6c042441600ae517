"""Pairs of rows judged by hand."""

import pytest

from dmd2_jax.commands.ablate.rows import Pair
from dmd2_jax.commands.ablate.table import judge, spread


def test_spread_divides_by_one_less_than_the_number() -> None:
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5), 2)


def test_spread_of_one_has_no_deviation() -> None:
    assert spread([4.0]) == (4.0, None, 1)


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        # Both rows deviate by 1, so that s = 1: means must be more than 2 apart.
        ([1.0, 2.0, 3.0], [3.5, 4.5, 5.5], "agree"),
        ([3.5, 4.5, 5.5], [1.0, 2.0, 3.0], "disagree"),
        ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0], "within noise"),
        ([1.0], [5.0], "unknown"),
        ([], [5.0, 6.0], "not run"),
    ],
)
def test_judge_asks_for_twice_the_pooled_deviation(better, worse, verdict) -> None:
    assert judge(Pair("a", "b"), better, worse)["verdict"] == verdict


def test_judge_pools_by_degrees_of_freedom() -> None:
    # Sums of squares 2 and 0 over 2 + 0 degrees.
    found = judge(Pair("a", "b"), [1.0, 2.0, 3.0], [7.0])
    assert found["pooled_std"] == pytest.approx(1.0) and found["margin"] == 5.0


def test_judge_knows_where_more_is_better() -> None:
    found = judge(Pair("a", "b", "class_accuracy"), [0.9, 0.92], [0.5, 0.52], more_is_better=True)
    assert found["verdict"] == "agree" and found["margin"] == pytest.approx(0.4)
