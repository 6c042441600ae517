"""Turn Ctrl-C, SIGTERM and SIGHUP into a request to save and stop."""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

from dmd2_jax.runtime.terminations import terminations

__all__ = ["GracefulStop", "Interrupted", "deferred", "stoppable"]

_log = logging.getLogger(__name__)


class Interrupted(BaseException):
    """A run was asked to stop, has saved, and can be resumed.

    Like KeyboardInterrupt no Exception: it may be raised anywhere, and whoever handles the failures
    of what he calls must not take it for one (a checkpoint being read is not damaged by it).

    Attributes:
      exit_code: 130 after Ctrl-C (128 + SIGINT, as shells expect); 0 after SIGTERM and
        SIGHUP, so that a scheduler that pre-empts a job does not count it as failed.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        """Keep the message for the user and the exit code for the shell."""
        super().__init__(message)
        self.exit_code = exit_code


class GracefulStop:
    """While entered, SIGINT, SIGTERM and SIGHUP ask the loop to stop between steps, nothing else.

    A second Ctrl-C kills the process at once, even inside a compilation; checkpoints are renamed
    into place when complete, so that harms none. Outside the main thread, where Python allows no
    handlers, signals are left alone.

    With `jax.distributed`, XLA owns SIGTERM: the notice of any process reaches all, and all stop
    after the same step, as saving together demands. Ctrl-C is turned into such a notice.

    Attributes:
      requested: "SIGINT", "SIGTERM", "SIGHUP" or None.
    """

    def __init__(self) -> None:
        """Install nothing yet."""
        self.requested: str | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._together = False

    @property
    def exit_code(self) -> int:
        """The process's exit code for the signal that was received."""
        return 130 if self.requested == "SIGINT" else 0

    def reached(self, step: int) -> bool:
        """Return whether to save and stop after this step.

        Args:
          step: steps taken. With `jax.distributed`, every process must ask after every step.
        """
        if not self._together:
            return self.requested is not None
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        self.requested = self.requested or "SIGTERM"
        return True

    def __enter__(self) -> Self:
        self._together = jax.distributed.is_initialized()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *terminations(together=self._together)):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _restore(self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        # The default action needs no Python to run, so it works inside compiled code too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        _log.warning(
            "%s received: finishing this step, then saving; Ctrl-C again aborts at once.",
            self.requested,
        )


@contextlib.contextmanager
def stoppable(hint: str) -> Iterator[None]:
    """Let SIGTERM or SIGHUP end the part of a command in which there is nothing to save.

    A scheduler may take the machine back while a run starts up or writes its last files; that is
    no failure of the run either.

    Args:
      hint: how to go on, for the message.

    Raises:
      Interrupted: with exit code 0, at either.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise Interrupted(
            f"stopped by {name} outside of training; what was saved is intact. {hint}", 0
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, stop) for number in terminations()}
    try:
        with _raised_again():
            yield
    finally:
        _restore(previous)


@contextlib.contextmanager
def _raised_again() -> Iterator[None]:
    """Send SIGTERM once more where what it raised ended nothing.

    JAX has a callback in Python's collector: an error that a signal raises in there is dropped.
    """
    before, main = sys.unraisablehook, threading.get_ident()

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            threading.Timer(0.01, send).start()
        else:
            before(unraisable)

    def send() -> None:
        # On a busy core the hook may run still: what is raised in there is dropped for good.
        while _is_running(hook.__code__, main):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


def _is_running(code: CodeType, thread: int) -> bool:
    """Return whether a thread is in a function's code, or in what that calls."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let SIGTERM and SIGHUP wait for the end of the block, for seconds that are not to be torn.

    If the block fails, its error is what the caller hears of. Nothing is changed where SIGTERM is
    not Python's, as with `jax.distributed` it is XLA's, and outside the main thread.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or jax.distributed.is_initialized()
        or signal.getsignal(signal.SIGTERM) is None
    ):
        yield
        return
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in terminations()
    }
    try:
        yield
    finally:
        _restore(previous)
    if received:
        signal.raise_signal(received[0])


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
