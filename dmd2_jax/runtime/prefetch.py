"""Batches made ahead: while the devices take one step, a thread makes what the next ones need."""

import collections
import threading
import time
from collections.abc import Callable

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.closing import Closing
from dmd2_jax.typing import PyTree

__all__ = ["Prefetch"]


class Prefetch(Closing):
    """Make the batches of a range of steps in one background thread, in order.

    What `make` returns is a function of the step alone, so reading ahead changes no result. It
    should put the batch on the devices itself: the copy then overlaps with the step too.

    Attributes:
      waited: seconds that `take` has waited for a batch, in all.
    """

    def __init__(
        self, make: Callable[[int], PyTree], start: int, total: int, depth: int = 2
    ) -> None:
        """Start the thread.

        Args:
          make: step -> batch; called in the thread only, one step after the other.
          start: the first step.
          total: the step after the last.
          depth: batches that may lie finished and not taken, >= 1.

        Raises:
          ValueError: if `depth` is less than 1.
        """
        if depth < 1:
            raise Refused(f"depth={depth}, expected at least 1; raise it.")
        self.waited = 0.0
        self._make, self._depth = make, depth
        self._ready: collections.deque[tuple[PyTree, BaseException | None]] = collections.deque()
        self._next, self._total = start, total
        self._changed = threading.Condition()
        self._closed = False
        # A daemon: a process that ends without `close` does not wait for it.
        self._thread = threading.Thread(
            target=self._run, args=(start, total), name="prefetch", daemon=True
        )
        self._thread.start()

    def take(self, i: int) -> PyTree:
        """Return the batch of step `i`; steps are taken one after the other.

        Raises:
          ValueError: if it is not this step's turn, or the batches are closed.
          Exception: what `make` raised for this step.
        """
        if i != self._next or i >= self._total or self._closed:
            raise Refused(
                f"take({i}), expected {self._next} of {self._total} steps before close(); take "
                "each step's batch once, in order."
            )
        start = time.perf_counter()
        with self._changed:
            while not self._ready:
                self._changed.wait()
            batch, error = self._ready[0]
            if error is None:  # An error stays: taking again raises it again, and does not hang.
                self._ready.popleft()
                self._next += 1
                self._changed.notify_all()
        self.waited += time.perf_counter() - start
        if error is not None:
            raise error
        return batch

    def close(self) -> None:
        """Stop the thread, after the batch that it is making, and drop what was not taken.

        A thread that hangs (a disk that does not answer) is waited for 30 seconds, and left.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=30)
        self._ready.clear()

    def _run(self, start: int, total: int) -> None:
        for i in range(start, total):
            with self._changed:
                while len(self._ready) >= self._depth and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
            batch, error = None, None
            try:
                batch = self._make(i)
            except BaseException as raised:
                error = raised
            with self._changed:
                self._ready.append((batch, error))
                self._changed.notify_all()
            if error is not None:
                return
            del batch  # else the thread would keep the newest one alive while it waits
