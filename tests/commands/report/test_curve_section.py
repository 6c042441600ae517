"""Which numbers of a run become curves."""

import numpy as np

from dmd2_jax.commands.report.curve_section import curves_of


def test_curves_of_leave_out_what_is_no_finite_number() -> None:
    rows = [
        {"step": 1, "loss": 2.0, "note": "x", "flag": True, "list": [1.0]},
        {"step": 2, "loss": None},
        {"step": 3, "loss": float("nan")},
        {"step": 4, "loss": 10**400},
        {"step": 5, "loss": 1},
        {"step": 6, "loss": 1e300},
        {"step": 1e300, "loss": 1.0},
    ]
    found = curves_of(rows)
    assert list(found) == ["loss"]
    np.testing.assert_array_equal(found["loss"], [[1, 5], [2, 1]])


def test_curves_of_leave_out_the_counts_of_turns() -> None:
    assert curves_of([{"step": 1, "critic_turns": 5, "generator_turns": 1}]) == {}
