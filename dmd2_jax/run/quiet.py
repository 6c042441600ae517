"""What Orbax writes of a failure beside raising it: hundreds of lines before the one that helps.

A save or a read that fails is raised by Orbax and said by `checkpoint.py`. Its threads log the same
error with its traceback, several times; and tensorstore's callbacks come to an event loop that
Orbax has closed by then, which the interpreter prints, a traceback for each array.
"""

import functools
import logging
import sys

__all__ = ["say_failures_once"]


class _Raised(logging.Filter):
    """Drop what Orbax logs with a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname)


@functools.cache
def say_failures_once() -> None:
    """Leave the saying of Orbax's failures to whoever catches them, from now on."""
    logging.getLogger("absl").addFilter(_Raised())
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook
