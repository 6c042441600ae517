"""A trace of a few steps of a run for a profiler, on demand."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

from dmd2_jax.runtime.distributed import say
from dmd2_jax.runtime.places import in_bucket, path_of
from dmd2_jax.runtime.whole_file import scratch_folder, upload_folder

__all__ = ["Profiler"]


class Profiler:
    """Trace some steps of a loop into a folder; without a span, only name the steps.

    Example:
      with Profiler(workdir / "profile", (1, 3), unit="cycle") as profiler:
          for step in range(100):
              with profiler.step(step):
                  state, metrics = advance(state)
              profiler.after(metrics)
    """

    def __init__(self, folder: str | Path, span: tuple[int, int] | None, *, unit: str) -> None:
        """Trace `span` = (steps to let pass, steps to trace); None traces nothing."""
        self._folder, self._span, self._unit = path_of(folder), span, unit
        self._traced, self._scratch = self._folder, contextlib.ExitStack()
        self._taken = 0
        self._running = False

    def step(self, number: int) -> jax.profiler.StepTraceAnnotation:
        """Return what marks step `number` in a trace; begins the trace if it is time."""
        if self._span is not None and self._taken == self._span[0]:
            if in_bucket(self._folder):
                self._traced = self._scratch.enter_context(scratch_folder("profile"))
            jax.profiler.start_trace(self._traced, create_perfetto_trace=True)
            self._running = True
        return jax.profiler.StepTraceAnnotation(self._unit, step_num=number)

    def after(self, outputs: object) -> None:
        """Note that a step is taken; ends the trace, once the device is done, if it is time.

        Args:
          outputs: arrays that the step makes.
        """
        self._taken += 1
        if self._running and self._span is not None and self._taken == sum(self._span):
            jax.block_until_ready(outputs)
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running:
            self._stop()
        elif self._span is not None and self._taken <= self._span[0] and kind is None:
            say(
                f"profile: no trace, this process took {self._taken} {self._unit}s and let "
                f"{self._span[0]} pass; lower START of profile=START:COUNT."
            )

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        if self._traced != self._folder:
            with self._scratch:
                upload_folder(self._traced, self._folder)
        say(
            f"profile written to {self._folder}. To look at it: `tensorboard --logdir "
            f"{self._folder}` with the tensorboard-plugin-profile package, or open the "
            f"perfetto_trace.json.gz in it at https://ui.perfetto.dev"
        )
