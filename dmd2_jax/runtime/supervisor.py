"""A parent that explains: when a peer is lost, XLA ends a process from inside, past Python."""

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

__all__ = ["LOST", "supervise"]

LOST = (
    "another process of this run has most likely died or cannot be reached, and no step can be "
    "taken without it. Finished checkpoints are intact."
)

_CHILD = "DMD2_SUPERVISED"
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def supervise(hint: str) -> None:
    """Run this process's command line again in a child, pass signals on, report how it ended.

    It returns in the child only. The parent exits with the child's code; with 1 and a message if
    the child was aborted, which is how XLA answers the loss of a peer.

    Args:
      hint: how to go on, for the message.
    """
    if os.environ.get(_CHILD) == str(os.getppid()):
        if sys.platform == "linux":  # a parent that is killed must not leave a writer behind
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        return
    # In a process group of its own: a Ctrl-C reaches it through the parent, once.
    command = [sys.executable, *sys.orig_argv[1:]]
    environment = os.environ | {_CHILD: str(os.getpid())}
    child = subprocess.Popen(command, env=environment, process_group=0)

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    code = child.wait()
    if code == -signal.SIGABRT:
        print(f"dmd2: ended by XLA (see above): {LOST} {hint}", file=sys.stderr, flush=True)
        code = 1
    sys.exit(code if code >= 0 else 128 - code)
