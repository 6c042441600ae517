"""Orbax's own tracebacks of a failure that is raised and said anyway."""

import logging
import sys
from types import SimpleNamespace

import pytest

from dmd2_jax.run import quiet


def test_tracebacks_that_orbax_logs_are_dropped_and_nothing_else() -> None:
    quiet.say_failures_once()
    (ours,) = [it for it in logging.getLogger("absl").filters if isinstance(it, quiet._Raised)]
    error = (ValueError, ValueError("full"), None)

    def record(path: str, info: object) -> logging.LogRecord:
        return logging.LogRecord("absl", logging.ERROR, path, 1, "x", (), info)

    assert not ours.filter(record("/a/orbax/checkpoint/future.py", error))
    assert ours.filter(record("/a/orbax/checkpoint/future.py", None))
    assert ours.filter(record("/a/other.py", error))


def test_callbacks_of_a_closed_loop_are_dropped_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: told.append(it.exc_value))
    quiet.say_failures_once.__wrapped__()
    other = RuntimeError("another")
    for error in (RuntimeError("Event loop is closed"), other, ValueError("Event loop is closed")):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert told[0] is other and len(told) == 2
