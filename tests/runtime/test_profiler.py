"""Which steps a profile traces. A trace file is made by tests/training/test_student.py."""

from pathlib import Path

import jax
import pytest

from dmd2_jax.runtime.profiler import Profiler


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list:
    """What was traced: "begin", step numbers, "end"."""
    events: list = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *a, **k: events.append("begin"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("end"))
    return events


def take(profiler: Profiler, steps: range, events: list) -> None:
    for step in steps:
        with profiler.step(step):
            events.append(step)
        profiler.after(None)


def test_profiler_traces_the_span_of_this_process(tmp_path: Path, traced: list, capsys) -> None:
    with Profiler(tmp_path, (1, 2), unit="cycle") as profiler:
        take(profiler, range(50, 55), traced)
    assert traced == [50, "begin", 51, 52, "end", 53, 54]
    assert "perfetto" in capsys.readouterr().err


def test_profiler_ends_a_trace_that_the_run_cuts_short(tmp_path: Path, traced: list) -> None:
    def run() -> None:
        with Profiler(tmp_path, (1, 9), unit="cycle") as profiler:
            take(profiler, range(3), traced)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert traced == [0, "begin", 1, 2, "end"]


def test_profiler_says_when_a_run_is_too_short_for_it(tmp_path: Path, traced: list, capsys) -> None:
    with Profiler(tmp_path, (5, 1), unit="cycle") as profiler:
        take(profiler, range(2), traced)
    assert traced == [0, 1]
    assert "this process took 2 cycles and let 5 pass; lower START" in capsys.readouterr().err


def test_profiler_without_a_span_traces_nothing(tmp_path: Path, traced: list) -> None:
    with Profiler(tmp_path, None, unit="cycle") as profiler:
        take(profiler, range(3), traced)
    assert traced == [0, 1, 2]
