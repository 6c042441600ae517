"""Signals ask a run to stop; a second Ctrl-C does not ask."""

import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.runtime.preemption import GracefulStop, Interrupted, deferred, stoppable


@pytest.fixture(autouse=True)
def _not_under_nohup() -> Iterator[None]:
    """Take SIGHUP as a terminal gives it: where the tests were started by nohup it is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)]
)
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


def test_stoppable_ends_what_has_nothing_to_save() -> None:
    before = signal.getsignal(signal.SIGTERM)
    expected = pytest.raises(Interrupted, match=r"outside of training; .* Try again\.")
    with expected as caught, stoppable("Try again."):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_stoppable_ends_what_was_collecting_garbage_when_the_signal_came(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(threading.Timer):
        def start(self) -> None:  # as on a busy core, where it is due before it has been started
            super().start()
            time.sleep(seconds)

    monkeypatch.setattr(threading, "Timer", Slow)

    def callback(phase: str, info: object) -> None:  # as JAX has one
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGTERM)

    def collect() -> None:
        gc.callbacks.append(callback)
        gc.collect()
        for _ in range(600):  # not one long sleep: a signal just before it waits for its end
            time.sleep(0.05)

    with pytest.raises(Interrupted, match="stopped by SIGTERM"), stoppable("again"):
        collect()


def test_a_closed_terminal_ends_what_has_nothing_to_save_by_name() -> None:
    expected = pytest.raises(Interrupted, match=r"stopped by SIGHUP outside of training")
    with expected, stoppable("Try again."):
        os.kill(os.getpid(), signal.SIGHUP)


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable("Try again."), GracefulStop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_stoppable_gives_way_to_a_running_loop() -> None:
    with stoppable("Try again."), GracefulStop() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(2)


def test_deferred_lets_sigterm_wait_for_the_end_of_the_block() -> None:
    reached = []

    def act() -> None:
        with stoppable("Try again."):
            with deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append("end of the block")
            reached.append("behind it")

    with pytest.raises(Interrupted):
        act()
    assert reached == ["end of the block"]


def test_deferred_keeps_the_error_of_its_block() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def act() -> None:
        with stoppable("Try again."), deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        act()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("during", ["wait_until_finished", "restore"])
def test_sigterm_while_a_checkpoint_is_written_or_read_does_it_no_harm(
    during: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    state = {"w": jnp.arange(6.0)}

    def act() -> None:
        with stoppable("Try again."), Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state)
            inner = getattr(checkpoints._manager, during)

            def hit(*args: object, **kwargs: object) -> object:
                os.kill(os.getpid(), signal.SIGTERM)
                return inner(*args, **kwargs)

            monkeypatch.setattr(checkpoints._manager, during, hit)
            checkpoints.restore(state)

    with pytest.raises(Interrupted):
        act()
    assert "failed" not in capfd.readouterr().err
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored, _, step = checkpoints.restore(state)
    assert step == 1
    np.testing.assert_array_equal(np.asarray(restored["w"]), state["w"])
    assert [folder.name for folder in tmp_path.iterdir()] == ["1"]


PROCESS = """
    import sys, time
    from pathlib import Path
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from dmd2_jax.run.checkpoint import Keep
    from dmd2_jax.run.job import Job
    from dmd2_jax.run.loop import run_loop
    from dmd2_jax.runtime.preemption import Interrupted

    port, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    shapes = {"w": jax.ShapeDtypeStruct((6,), jnp.float32)}

    @jax.jit
    def step(state, i):
        return {"w": state["w"] * 0.5 + i}

    def advance(state, batch, i):
        time.sleep(0.01)
        if i == 2:
            print("TRAINING", flush=True)
        state = step(state, jnp.float32(i))
        return state, {"mean": jnp.mean(state["w"])}

    try:
        run_loop(Job(
            workdir=folder, unit="step", total=10_000, total_key="", keep=Keep(3),
            log={"every": 5, "grid_every": 10_000, "checkpoint_every": 10_000},
            shapes=shapes, shardings=split, make_state=lambda: {"w": jnp.arange(6.0)},
            make_batch=lambda i, seen: None, advance=advance,
            examples_per_step=1, images_per_step=1,
        ))
    except Interrupted as stop:
        print(stop, flush=True)
        sys.exit(stop.exit_code)
"""


def test_sigterm_to_one_process_of_two_stops_and_saves_both(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROCESS), port, str(number), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert "TRAINING\n" in iter(process.stdout.readline, "")  # Gloo speaks there too
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    assert all("stopped by SIGTERM after step" in text for text in said)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        state, _, step = checkpoints.restore({"w": jax.ShapeDtypeStruct((6,), jnp.float32)})
    assert all(f"after step {step} of" in text for text in said)
    w = np.arange(6, dtype=np.float32)
    for i in range(step):
        w = w * np.float32(0.5) + np.float32(i)
    np.testing.assert_array_equal(np.asarray(state["w"]), w)
