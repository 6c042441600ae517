"""Where a run's time goes: speed, and the shares of waiting, drawing and saving."""

import contextlib
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator

import jax

__all__ = ["DRAWING_SHARE", "Stopwatch", "memory"]

DRAWING_SHARE = 0.03
"""The largest share of a run's time that drawing should cost."""

_log = logging.getLogger(__name__)


class Stopwatch:
    """Measure a loop between its reports.

    The clock starts when the first step is done: before that lies the compilation.
    """

    def __init__(
        self,
        *,
        unit: str,
        images_per_step: int,
        turns_per_step: int,
        draw_every: int,
        draw_key: str,
        waited: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to measure.

        Args:
          unit: what a step is called, for example "cycle".
          images_per_step: images a step.
          turns_per_step: optimiser updates a step.
          draw_every: steps between two drawings.
          draw_key: the key of the config that says so.
          waited: returns the seconds spent waiting for data so far, where that is known.
          clock: returns seconds.
        """
        self._unit, self._images, self._turns = unit, images_per_step, turns_per_step
        self._draw_every, self._draw_key, self._clock = draw_every, draw_key, clock
        self._waited = waited or (lambda: math.nan)
        self._spent = {"drawing": 0.0, "evaluating": 0.0, "saving": 0.0}
        self._began = clock()
        self._first: float | None = None
        self._drawings, self._warned = 0, False
        self._restart()

    def step_done(self) -> None:
        """Note that a step is taken; after the first one the caller waits for its results."""
        if self._first is None:
            self._first = self._clock() - self._began
            self._restart()
        else:
            self._steps += 1

    @contextlib.contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Measure a part that is no training: "drawing", "evaluating" or "saving"."""
        before = self._clock()
        yield
        seconds = self._clock() - before
        self._spent[what] += seconds
        if what == "drawing":
            self._drawings += 1
            self._warn(seconds)

    def report(self) -> dict[str, float]:
        """Return the figures since the last report, and begin again; {} if no step was timed.

        Returns:
          images_per_second, seconds_per_UNIT and seconds_per_turn (without drawing, evaluating and
          saving); data_wait_share, drawing_share, evaluating_share and saving_share (of all the
          time); memory in MB; in the first report first_UNIT_seconds, mostly compilation.
        """
        if not self._steps:
            return {}
        wall = self._clock() - self._mark
        per_step = self._per_step()
        figures = {
            "images_per_second": self._images / per_step,
            f"seconds_per_{self._unit}": per_step,
            "seconds_per_turn": per_step / self._turns,
            "data_wait_share": (self._waited() - self._waited_before) / wall,
            **{f"{what}_share": seconds / wall for what, seconds in self._spent.items()},
            **memory(),
        }
        if self._first:
            figures[f"first_{self._unit}_seconds"] = self._first
            self._first = 0.0
        self._restart()
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    def _per_step(self) -> float:
        training = self._clock() - self._mark - sum(self._spent.values())
        return max(training, 1e-9) / self._steps

    def _restart(self) -> None:
        self._mark, self._steps = self._clock(), 0
        self._waited_before = self._waited()
        self._spent = dict.fromkeys(self._spent, 0.0)

    def _warn(self, seconds: float) -> None:
        """Say once that drawing is dear; not of the first drawing, which compiles."""
        if self._drawings < 2 or self._warned or not self._steps:
            return
        per_step = self._per_step()
        share = seconds / (seconds + self._draw_every * per_step)
        if share > DRAWING_SHARE:
            self._warned = True
            enough = math.ceil(seconds * (1 / DRAWING_SHARE - 1) / per_step)
            _log.warning(
                "drawing takes %.1f s every %d %ss, %.0f %% of the time, expected at most %.0f %%; "
                "raise it: config.%s=%d.",
                seconds,
                self._draw_every,
                self._unit,
                100 * share,
                100 * DRAWING_SHARE,
                self._draw_key,
                enough,
            )


def memory() -> dict[str, float]:
    """Return the most memory used so far, in MB: the process's, and a device's where it tells."""
    # ru_maxrss counts kilobytes on Linux and bytes on macOS.
    unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
    figures = {"host_memory_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    told = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in told:
        figures["device_memory_peak_mb"] = told["peak_bytes_in_use"] / 1e6
    return figures
