"""Signals ask a run to stop; a second Ctrl-C does not ask."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from dmd2_jax.runtime.preemption import GracefulStop


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_graceful_stop_records_the_signal(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with GracefulStop() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number.name
        assert stop.exit_code == code
    assert signal.getsignal(number) is before


def test_second_ctrl_c_ends_the_process_at_once() -> None:
    code = """
        import os, signal
        from dmd2_jax.runtime.preemption import GracefulStop
        with GracefulStop() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            print(stop.requested, flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            print("still here", flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "SIGINT\n"
