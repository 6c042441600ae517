"""Where a run's time goes, by a clock that the tests turn."""

import logging

import pytest

from dmd2_jax.run.speed import Stopwatch, memory


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def stopwatch(self, **changes) -> Stopwatch:
        settings = {"unit": "cycle", "images_per_step": 12, "turns_per_step": 4}
        settings |= {"draw_every": 10, "draw_key": "log.grid_every"}
        return Stopwatch(**(settings | changes), clock=self)

    def steps(self, watch: Stopwatch, number: int, seconds: float) -> None:
        for _ in range(number):
            self.now += seconds
            watch.step_done()

    def spend(self, watch: Stopwatch, what: str, seconds: float) -> None:
        with watch.spending(what):
            self.now += seconds


def without_memory(figures: dict) -> dict:
    return {name: value for name, value in figures.items() if not name.endswith("_mb")}


def test_report_tells_the_first_step_from_the_others() -> None:
    clock = Clock()
    watch = clock.stopwatch()
    clock.steps(watch, 1, 60.0)
    clock.steps(watch, 5, 2.0)
    assert without_memory(watch.report()) == pytest.approx(
        {
            "images_per_second": 6.0,
            "seconds_per_cycle": 2.0,
            "seconds_per_turn": 0.5,
            "drawing_share": 0.0,
            "evaluating_share": 0.0,
            "saving_share": 0.0,
            "first_cycle_seconds": 60.0,
        }
    )
    clock.steps(watch, 2, 3.0)
    second = watch.report()
    assert second["seconds_per_cycle"] == pytest.approx(3.0)
    assert "first_cycle_seconds" not in second


def test_report_takes_drawing_and_saving_out_of_the_speed() -> None:
    clock = Clock()
    watch = clock.stopwatch()
    clock.steps(watch, 1, 60.0)
    clock.steps(watch, 4, 2.0)
    clock.spend(watch, "drawing", 1.5)
    clock.spend(watch, "saving", 0.5)
    figures = watch.report()
    assert figures["seconds_per_cycle"] == pytest.approx(2.0)
    assert figures["drawing_share"] == pytest.approx(0.15)
    assert figures["saving_share"] == pytest.approx(0.05)


def test_report_has_the_share_of_waiting_since_the_last_report() -> None:
    clock, waited = Clock(), [7.0]
    watch = clock.stopwatch(waited=lambda: waited[0])
    clock.steps(watch, 1, 60.0)
    for more, share in ((1.0, 0.1), (3.0, 0.3)):
        clock.steps(watch, 5, 2.0)
        waited[0] += more
        assert watch.report()["data_wait_share"] == pytest.approx(share)


def test_report_of_no_timed_step_is_empty() -> None:
    clock = Clock()
    watch = clock.stopwatch()
    clock.steps(watch, 1, 60.0)
    assert watch.report() == {}


def drawn(caplog: pytest.LogCaptureFixture, seconds: list[float]) -> list[str]:
    clock = Clock()
    watch = clock.stopwatch()
    clock.steps(watch, 1, 60.0)
    with caplog.at_level(logging.WARNING):
        for one in seconds:
            clock.steps(watch, 10, 2.0)
            clock.spend(watch, "drawing", one)
            watch.report()
    return [record.getMessage() for record in caplog.records]


def test_drawing_that_is_dear_is_said_once_with_the_key_to_raise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (message,) = drawn(caplog, [0.1, 2.0, 2.0])
    # 2 s of 22 s; 2 s are 3 % of 66.7 s, which leaves 64.7 s for cycles of 2 s.
    assert "2.0 s every 10 cycles, 9 % of the time, expected at most 3 %" in message
    assert message.endswith("raise it: config.log.grid_every=33.")


def test_drawing_that_is_dear_only_the_first_time_is_not_mentioned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert drawn(caplog, [30.0, 0.5, 0.5]) == []


def test_memory_of_this_process_is_between_a_hundred_megabytes_and_the_machine() -> None:
    assert 100 < memory()["host_memory_peak_mb"] < 2_000_000
