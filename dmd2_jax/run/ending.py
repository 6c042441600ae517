"""The end of a run before its last step, and the best weights until then."""

from collections.abc import Callable, Mapping
from typing import Any

from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.run.job import Job, Stopper, Verdict
from dmd2_jax.run.metrics import METRICS, reported
from dmd2_jax.runtime.distributed import from_first
from dmd2_jax.typing import PyTree

__all__ = ["Ending"]


class Ending:
    """Ask a job's `stopper` in the first process, and tell every process the same.

    The best weights are written after their state, and once more where a run is resumed at them:
    whatever ends a process, they are of no step that a resumed run takes again.
    """

    def __init__(self, job: Job, checkpoints: Checkpoints) -> None:
        """Begin with no report.

        Args:
          job: the run.
          checkpoints: where its states are saved.
        """
        self._job, self._checkpoints = job, checkpoints
        self._verdict = Verdict()

    @property
    def reason(self) -> str:
        """Why the run ends where it is; "": it goes on."""
        return self._verdict.reason

    def replay(self, state: PyTree, start: int) -> None:
        """Take in the reports of before a resumption.

        Args:
          state: that the run is resumed at.
          start: its step; 0: there are no reports.
        """

        def asked(stopper: Stopper) -> Verdict:
            rows = reported(self._job.workdir / METRICS)
            verdict = stopper.replay(rows)
            is_last = bool(rows) and rows[-1]["step"] == start
            return verdict._replace(best=verdict.best and is_last)

        if start:
            self._ask(asked)
            self.saved(state, start)

    def report(self, done: int, values: Mapping[str, Any]) -> bool:
        """Return whether a report ends the run.

        Args:
          done: steps taken.
          values: the report.
        """
        self._ask(lambda stopper: stopper.report(done, values))
        return bool(self.reason)

    def saved(self, state: PyTree, done: int) -> None:
        """Write the weights of a state that is being saved, if its report found them the best.

        Args:
          state: the state.
          done: steps taken.
        """
        if self._verdict.best and self._job.export_best is not None:
            self._checkpoints.wait()
            self._job.export_best(state, done)
            self._verdict = self._verdict._replace(best=False)

    def _ask(self, question: Callable[[Stopper], Verdict]) -> None:
        stopper = self._job.stopper
        if stopper is not None:
            told: dict[str, Any] = from_first(lambda: question(stopper)._asdict())
            self._verdict = Verdict(**told)
