"""Weak scaling, as benchmarks/weak_scaling.py reads it off the compiled cycle."""

import functools

import pytest

from benchmarks import weak_scaling
from benchmarks.weak_scaling import Row, table

METRICS = 800
"""At most as many bytes of a cycle's metrics are summed over the devices."""

# Above the batch at which the kernel gradient of networks/conv.py changes its form on CPU, which
# is chosen by the global batch.
PER_DEVICE = 40


@functools.cache
def measured(layout: str, devices: int) -> Row:
    return weak_scaling.measure(layout, devices, PER_DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data", "fsdp"])
def test_flops_and_bytes_of_a_device_stay_the_same_from_one_to_eight(layout: str) -> None:
    alone, spread = measured("data", 1), measured(layout, 8)
    assert spread.flops == pytest.approx(alone.flops, rel=0.02)
    assert spread.compiled_flops == pytest.approx(alone.compiled_flops, rel=0.02)
    assert spread.num_bytes == pytest.approx(alone.num_bytes, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data", "fsdp"])
def test_collectives_move_what_the_formula_says_and_nothing_else(layout: str) -> None:
    row = measured(layout, 8)
    assert row.gathered == row.gathered_expected
    assert 0 <= row.reduced - row.reduced_expected <= METRICS
    assert row.kinds == {"all-gather", "all-reduce"}


def test_table_has_a_line_for_each_row() -> None:
    row = Row("fsdp", 8, 2.5e6, 1.5e6, 1_250_000, 10, 11, 1200, 1300, frozenset())
    assert table([row]).splitlines()[1].split() == [
        *("fsdp=8", "2.5", "1.5", "1.25", "10", "11", "1,200", "1,300")
    ]
