"""Batches made ahead of the steps that take them."""

import threading
import time

import pytest

from dmd2_jax.runtime.prefetch import Prefetch


def test_take_returns_every_steps_batch_in_order() -> None:
    with Prefetch(lambda i: i * i, start=3, total=9) as batches:
        assert [batches.take(i) for i in range(3, 9)] == [9, 16, 25, 36, 49, 64]


def test_prefetch_makes_at_most_depth_batches_ahead() -> None:
    made: list[int] = []
    with Prefetch(lambda i: made.append(i), start=0, total=100, depth=2) as batches:
        batches.take(0)
        deadline = time.monotonic() + 5
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)  # time enough to make more, if it would
        assert made == [0, 1, 2]


def test_take_overlaps_with_making_the_next_batch() -> None:
    begun = threading.Event()

    def make(i: int) -> int:
        if i == 1:
            begun.set()
        return i

    with Prefetch(make, start=0, total=2) as batches:
        batches.take(0)
        assert begun.wait(5), "step 1 is made without being asked for"


def test_take_raises_what_making_that_batch_raised() -> None:
    def make(i: int) -> int:
        if i == 2:
            raise OSError("file 7 is gone")
        return i

    with Prefetch(make, start=0, total=5) as batches:
        assert [batches.take(0), batches.take(1)] == [0, 1]
        for _ in range(2):  # and again, rather than waiting for ever
            with pytest.raises(OSError, match="file 7 is gone"):
                batches.take(2)


def test_close_stops_the_thread_though_batches_are_left() -> None:
    before = threading.active_count()
    batches = Prefetch(lambda i: i, start=0, total=10**9)
    batches.take(0)
    batches.close()
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="before close"):
        batches.take(1)


def test_waited_counts_the_time_that_take_blocked() -> None:
    def make(i: int) -> int:
        time.sleep(0.1 if i == 1 else 0)
        return i

    with Prefetch(make, start=0, total=2) as batches:
        batches.take(0)
        first = batches.waited
        batches.take(1)
        assert batches.waited - first > 0.05


def test_take_refuses_a_step_out_of_turn() -> None:
    with Prefetch(lambda i: i, start=0, total=5) as batches:
        batches.take(0)
        for i in (0, 2, -1):
            with pytest.raises(ValueError, match="expected 1 of 5 steps"):
                batches.take(i)


def test_take_refuses_a_step_beyond_the_last() -> None:
    with Prefetch(lambda i: i, start=5, total=5) as batches, pytest.raises(ValueError, match="5"):
        batches.take(5)


def test_prefetch_refuses_no_depth() -> None:
    with pytest.raises(ValueError, match="depth=0"):
        Prefetch(lambda i: i, start=0, total=1, depth=0)
