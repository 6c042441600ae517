"""A parent that explains: when a peer is lost, XLA ends a process from inside, past Python."""

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

from dmd2_jax.runtime.terminations import terminations

__all__ = ["LOST", "say_if_aborted", "supervise"]

LOST = (
    "another process of this run has most likely died or cannot be reached, and no step can be "
    "taken without it. Finished checkpoints are intact."
)

_CHILD, _PIPE = "DMD2_SUPERVISED", "DMD2_SUPERVISOR_PIPE"
_MOST_TEXT = 2**16  # bytes that a pipe holds for nobody's reading
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def supervise(hint: str) -> None:
    """Run this process's command line again in a child, pass signals on, report how it ended.

    It returns in the child only. The parent exits with the child's code; with 1 and a message if
    the child was aborted, which is how XLA answers the loss of a peer.

    Args:
      hint: how to go on, for the message; `say_if_aborted` replaces what comes before it.
    """
    if os.environ.get(_CHILD) == str(os.getppid()):
        if sys.platform == "linux":  # a parent that is killed must not leave a writer behind
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        return
    # In a process group of its own: a Ctrl-C reaches it through the parent, once.
    command = [sys.executable, *sys.orig_argv[1:]]
    told, telling = os.pipe()
    environment = os.environ | {_CHILD: str(os.getpid()), _PIPE: str(telling)}
    child = subprocess.Popen(command, env=environment, process_group=0, pass_fds=[telling])

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in (signal.SIGINT, *terminations()):
        signal.signal(number, forward)
    code = child.wait()
    if code == -signal.SIGABRT:
        os.set_blocking(told, False)
        os.write(telling, b"\n")  # so that there is something to read
        said = os.read(told, _MOST_TEXT).decode().rstrip("\n").rpartition("\n")[2]
        text = f"{said or LOST} {hint}"
        print(f"dmd2: ended by XLA (see above): {text}", file=sys.stderr, flush=True)
        code = 1
    sys.exit(code if code >= 0 else 128 - code)


def say_if_aborted(text: str) -> None:
    """Tell the parent what to say if XLA aborts this process from now on.

    Args:
      text: one line; "" is `LOST`. Without a parent that listens nothing happens.
    """
    if os.environ.get(_CHILD) == str(os.getppid()):
        os.write(int(os.environ[_PIPE]), f"{text or LOST}\n".encode())
