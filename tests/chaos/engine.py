"""What every try shares: the command in this process, watched, and the name of what came of it."""

import contextlib
import io
import logging
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.tiny import contents, dmd2

REFUSED, NOTICED, HARMLESS = "refused", "noticed", "harmless"
SILENT, LOST, EXECUTED, HUNG, TRACEBACK = "silent", "lost", "executed", "hung", "traceback"
GOOD = (REFUSED, NOTICED, HARMLESS)
BAD = (SILENT, LOST, EXECUTED, HUNG, TRACEBACK)

MARKER = "executed"
"""What a hostile payload creates in the folder of its try."""

_SECONDS = 300.0  # of the clock: a busy machine may be slow, a pipe waits for ever
_MOST_BYTES = 2**30  # more than this process ever had
_NOTICES = re.compile(
    "damaged|lost|falling back|are not those|without letting go|anew|making it again|was edited"
)


class Try(NamedTuple):
    """What was harmed, what came of it, and what the product said."""

    member: str
    outcome: str
    said: str = ""


class Unavailable(Exception):
    """A kind cannot be tried here; the message says what is missing."""


class Said(NamedTuple):
    """What a command answered.

    Attributes:
      code: its exit code; None: it raised or was ended.
      text: standard output and error, and a traceback.
      hung: whether it took too long, or too much memory.
      cpu: seconds.
    """

    code: int | None
    text: str
    hung: bool = False
    cpu: float = 0.0


class _TooLongError(BaseException):
    """Raised out of a command that does not end."""


class _ToStandardError(logging.StreamHandler):
    """Log to whatever standard error is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def prepare_logs() -> None:
    """Have warnings in what a command says; before the first command, which would log by itself."""
    handler = _ToStandardError()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger().addHandler(handler)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def command(*words: object, seconds: float = _SECONDS) -> Said:
    """Run a command of the product in this process."""
    out, code, hung = io.StringIO(), None, False
    begun, peak = time.process_time(), _peak_bytes()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            with _limited(seconds):
                code = dmd2(*[word if isinstance(word, Path) else str(word) for word in words])
        except _TooLongError:
            hung = True
            traceback.print_exc()
        except Exception:
            traceback.print_exc()
    hung |= _peak_bytes() - peak > _MOST_BYTES
    return Said(code, out.getvalue(), hung, time.process_time() - begun)


def fine(*words: object) -> Said:
    """Run a command that nothing was done to; it must succeed."""
    said = command(*words)
    assert said.code == 0, said.text
    return said


def outcome(said: Said, same: Callable[[], bool], untouched: Callable[[], bool]) -> str:
    """Name what came of a try.

    Args:
      said: what the command answered.
      same: whether what it made is what it makes where nothing was harmed, to the byte; asked
        only after a success.
      untouched: whether all is where it was; asked only after a refusal.
    """
    if said.hung:
        return HUNG
    if said.code is None or "Traceback" in said.text:
        return TRACEBACK
    if said.code != 0:
        assert not re.search("^usage: ", said.text, re.MULTILINE), f"no try at all: {said.text}"
        if len(re.findall("^dmd2: ", said.text, re.MULTILINE)) != 1:
            return TRACEBACK
        return REFUSED if untouched() else LOST
    if not same():
        return SILENT
    return NOTICED if _NOTICES.search(said.text) else HARMLESS


def files_of(*folders: Path) -> dict[str, bytes]:
    """Return all files below some folders but those that say whose a folder is."""
    return {
        f"{folder} {name}": content
        for folder in folders
        if folder.exists()
        for name, content in contents(folder).items()
        if not name.endswith((".owner", ".owner.json"))
    }


def asked(
    folder: Path,
    member: str,
    *words: object,
    same: Callable[[], bool],
    kept: tuple[Path, ...],
    refusal_cpu: float = 60.0,
) -> Try:
    """Run a command after something was harmed, and judge what came of it.

    Args:
      folder: of this try, where MARKER would appear.
      member: what was harmed, and how.
      *words: the command.
      same: see `outcome`.
      kept: folders in which a refusal must change nothing.
      refusal_cpu: seconds of a processor in which a refusal must come.
    """
    before = files_of(*kept)
    said = command(*words)
    if said.code and said.cpu > refusal_cpu:
        said = said._replace(hung=True)
    result = outcome(said, same, lambda: files_of(*kept) == before)
    return Try(f"{member}; {words[0]}", executed(folder) or result, said.text)


def executed(folder: Path) -> str:
    """Return EXECUTED if a hostile payload ran, else ''."""
    return EXECUTED if (folder / MARKER).exists() else ""


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
