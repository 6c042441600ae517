"""What plans derive from their figures, and how they show them."""

import pytest

from dmd2_jax.plan.tables import plan_table, sweep_table
from tests.plans import example


def test_plan_table_shows_what_waits_on_the_host() -> None:
    there = {"params": 10**9, "on the host": 2 * 10**9}
    text = plan_table(example(owners={"teacher": there}, host_bytes=2 * 10**9))
    assert [line.split() for line in text.splitlines()[3:6]] == [
        ["memory", "a", "device,", "MB", "params", "optimiser", "average", "on", "the", "host"],
        ["teacher", "1,000.0", "-", "-", "2,000.0"],
        ["activations,", "gradients,", "the", "rest", "11,000.0"],
    ]
    # A CPU's compiler has counted it with all the rest.
    text = plan_table(example(owners={"teacher": there}))
    assert "the rest" in text
    assert "9,000.0" in text


def test_plan_takes_the_slowest_bound() -> None:
    plan = example()
    assert plan.bounds == pytest.approx({"arithmetic": 0.05, "memory": 0.1, "links": 0.02})
    assert plan.seconds == pytest.approx(0.1)
    assert plan.mfu == pytest.approx(0.5)
    text = plan_table(plan)
    assert "FITS: needs 12 GB a device, 16 GB there are" in text
    assert "roofline      at least 100 ms a cycle, the largest of arithmetic 50 ms" in text
    assert "at most 3,840 images/s and an MFU of 50% (model FLOPs alone)" in text
    assert "36,000 cycles: at least 0.0417 days, 8 chip-hours" in text


def test_plan_of_several_steps_says_about() -> None:
    # Backward simulation is counted as if to the last step each time: its time is no floor.
    text = plan_table(example(student_steps=4))
    assert "roofline      about 100 ms a cycle" in text
    assert "about 3,840 images/s" in text
    assert "at least" not in text


def test_plan_of_half_a_chip_has_half_its_peaks() -> None:
    halves = example(devices_per_chip=2)
    assert halves.seconds == pytest.approx(0.2)
    assert (halves.num_chips, halves._replace(num_devices=1).num_chips) == (4, 1)


def test_plan_of_a_cycle_that_computes_again_says_how_much() -> None:
    plan = example(model_flops=197e12 * 0.04)
    assert plan.mfu == pytest.approx(0.4)
    assert "20% of it computed again (model.remat, attention)" in plan_table(plan)
    assert "computed again (" not in plan_table(example())


def test_plan_without_peaks_says_that_there_is_no_time() -> None:
    text = plan_table(example(chip=None, device_kind="cpu"))
    assert "no published peaks of 'cpu' are known here" in text
    assert "so no time, MFU or chip-hours" in text
    assert "no published peaks" not in plan_table(example())


def test_plan_that_was_refused_says_so() -> None:
    plan = example(refusal="RESOURCE_EXHAUSTED", peak_bytes=35 * 10**9)
    assert not plan.fits
    assert "DOES NOT FIT: needs 35 GB a device" in plan_table(plan)
    assert "NO" in sweep_table([plan, example()])


def test_traced_plan_is_bounded_by_its_arithmetic_alone() -> None:
    traced = example(is_compiled=False, peak_bytes=10**6, limit_bytes=1e12)
    assert list(traced.bounds) == ["arithmetic"]
    assert traced.mfu == 1
    assert "only compiling says" in plan_table(traced)
    (row,) = sweep_table([traced]).splitlines()[1:]
    assert row.split()[3:7] == [">", "0.00", "1000.0", "?"]


def test_traced_plan_whose_weights_do_not_fit_says_so() -> None:
    traced = example(is_compiled=False, limit_bytes=6e9)
    assert "DOES NOT FIT: needs" in plan_table(traced)
