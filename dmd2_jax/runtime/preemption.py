"""Turn Ctrl-C and SIGTERM into a request to save and stop."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["GracefulStop", "Interrupted"]

_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """A run was asked to stop, has saved, and can be resumed.

    Attributes:
      exit_code: 130 after Ctrl-C (128 + SIGINT, as shells expect); 0 after SIGTERM, so that a
        scheduler that pre-empts a job does not count it as failed.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        """Keep the message for the user and the exit code for the shell."""
        super().__init__(message)
        self.exit_code = exit_code


class GracefulStop:
    """While entered, SIGINT and SIGTERM set `requested` and do nothing else.

    The loop looks at `requested` between steps. A second Ctrl-C kills the process at once,
    even inside a compilation; checkpoints are renamed into place when complete, so that
    harms none. Outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
      requested: "SIGINT", "SIGTERM" or None.
    """

    def __init__(self) -> None:
        """Install nothing yet."""
        self.requested: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """The process's exit code for the signal that was received."""
        return 130 if self.requested == "SIGINT" else 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        # The default action needs no Python to run, so it works inside compiled code too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _log.warning(
            "%s received: finishing this step, then saving; Ctrl-C again aborts at once.",
            self.requested,
        )
