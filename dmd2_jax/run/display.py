"""Progress on a terminal: a bar, the time that is left, and below them one line of words."""

import logging
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

from dmd2_jax.runtime.closing import Closing

__all__ = ["Display", "Look", "can_display", "clock"]

_WIDEST = 100  # characters of the bar with what stands around it
_open: list["Display"] = []  # one within another, as where a training measures its images


class Look(NamedTuple):
    """What a display shows at the moment.

    Attributes:
      name: of what is counted.
      done, total: how many there are.
      left: the time that is left; "": not known.
      below: the line below.
    """

    name: str
    done: int
    total: int
    left: str
    below: str


def can_display(stream: TextIO) -> bool:
    """Return whether a stream is a terminal on which something can be drawn again."""
    if not getattr(stream, "isatty", lambda: False)():
        return False
    from rich.console import Console

    return not Console(file=stream, force_terminal=True, force_jupyter=False).is_dumb_terminal


def clock(seconds: float) -> str:
    """Return a time as 05:00 or 1:05:00."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


class Display(Closing):
    """A display that is drawn anew four times a second; what is printed stands above it."""

    def __init__(self, stream: TextIO, look: Callable[[], Look]) -> None:
        """Show it.

        Args:
          stream: a terminal.
          look: returns what to show; called in a thread of its own.
        """
        from rich.console import Console
        from rich.live import Live

        self._stream, self._look = _below(stream), look
        outer = next((it for it in _open if it._stream is self._stream), None)
        self._console: Console = (
            outer._console
            if outer
            else Console(
                file=self._stream, force_terminal=True, force_jupyter=False, highlight=False
            )
        )
        self._live = Live(
            console=self._console,
            get_renderable=self._drawn,
            # What goes into a file goes there all the same.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._live.start()
        self._logging = [] if outer else _redirected_logging(self._stream)
        _open.append(self)

    def say(self, text: str) -> None:
        """Print a line above."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave it in its last state."""
        if self in _open:
            _open.remove(self)
            self._live.stop()
            for handler in self._logging:
                handler.setStream(self._stream)

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        it = self._look()
        share = it.done / it.total if it.total else 1.0
        row = Table.grid(padding=(0, 1), expand=True)
        row.width = min(self._console.width, _WIDEST)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        row.add_row(
            Text(f"{it.name}: {int(100 * share)}%"),
            ProgressBar(total=max(it.total, 1), completed=it.done if it.total else 1),
            Text(", ".join(filter(None, (f"{it.done}/{it.total}", it.left)))),
        )
        below = [Text(it.below, no_wrap=True, overflow="ellipsis")] if it.below else []
        return Group(row, *below)


def _below(stream: TextIO) -> TextIO:
    """Return the terminal that a stream in the place of one writes to."""
    return getattr(stream, "rich_proxied_file", stream)


def _redirected_logging(stream: TextIO) -> list[logging.StreamHandler]:
    """Have what is logged on a terminal stand above the display; return whose stream was changed.

    They hold the stream that was there when they were made.
    """
    changed = []
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            handler.setStream(sys.stderr)
            changed.append(handler)
    return changed
