"""What a training command has the loop do, described in one value."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dmd2_jax.run.checkpoint import Keep
from dmd2_jax.typing import PyTree

__all__ = ["Due", "Job", "Judge", "Stopper", "Verdict"]


class Judge(Protocol):
    """What looks at the reports of a run."""

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in the reports of before a resumption."""

    def report(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return what is wrong, by name."""


class Verdict(NamedTuple):
    """What a report says of a run.

    Attributes:
      reason: why the run ends with it; "": it goes on.
      best: whether its weights are the best so far.
    """

    reason: str = ""
    best: bool = False


class Stopper(Protocol):
    """What ends a run before its last step, by its reports."""

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> Verdict:
        """Take in the reports of before a resumption; return what the last of them says."""

    def report(self, step: int, values: Mapping[str, Any]) -> Verdict:
        """Return what a report says."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A training run from its first step to its last.

    Attributes:
      workdir: the run folder; checkpoints/, metrics.jsonl and speed.jsonl go there.
      unit: what a step is called, for example "cycle".
      total: steps of the whole run.
      total_key: the key of the config that says so.
      log: `every`, `draw_key`, `export_key`, `checkpoint_every` and `evaluate_every` (0 or absent:
        never), in steps; what `Writers` takes.
      keep: which checkpoints stay.
      shapes: the state's.
      shardings: where the state lies: a tree as the state, or one Sharding for all.
      make_state: makes the state of step 0, best where it belongs: what is made elsewhere has to
        fit there. Called only where there is no checkpoint.
      make_batch: (step, examples read before) -> the batch, on the devices; called ahead of time,
        in a thread of its own.
      advance: (state, batch, step) -> (state, metrics); may donate the state.
      examples_per_step: examples that a batch reads.
      images_per_step: images a step, for the images/s figure.
      updates_per_step: optimiser updates a step.
      max_skipped_in_a_row: the value of the metric `skipped_in_a_row` that stops the run.
      record: what is saved beside each state: the config, which teacher it is. The metrics of
        that step and the position in the data are added to it.
      export: (state, steps taken) -> nothing: writes the weights, from time to time and when the
        run is done.
      export_key: the key of `log` that says every how many steps.
      draw: (state, steps taken, whether the run ends there) -> pictures by name, from time to time
        and at the end.
      draw_key: likewise.
      score: state -> metrics, every `evaluate_every` steps and at the end. They are reported and
        saved with the state, which is saved then.
      judge: (steps taken, report) -> findings by name, which are added to the report and shown; its
        `replay` takes in the reports of before a resumption. In the first process alone.
      stopper: ends the run by its reports, with the findings of `judge` among them; in the first
        process alone, which tells the others.
      export_best: (state, steps taken) -> nothing: writes the weights that `stopper` finds to be
        the best so far, when their state is saved.
      shown: names of the metrics to show in the progress display; all are in metrics.jsonl.
      profile: (steps to let pass, steps to trace) into WORKDIR/profile; None traces nothing.
    """

    workdir: Path
    unit: str
    total: int
    total_key: str
    log: Mapping[str, Any]
    keep: Keep
    shapes: PyTree
    shardings: PyTree
    make_state: Callable[[], PyTree]
    make_batch: Callable[[int, int], PyTree]
    advance: Callable[[PyTree, PyTree, int], tuple[PyTree, dict[str, Any]]]
    examples_per_step: int
    images_per_step: int
    updates_per_step: int = 1
    max_skipped_in_a_row: int = 10
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    export: Callable[[PyTree, int], object] | None = None
    export_key: str = "export_every"
    draw: Callable[[PyTree, int, bool], Mapping[str, Path] | None] | None = None
    draw_key: str = "grid_every"
    score: Callable[[PyTree], dict[str, float]] | None = None
    judge: Judge | None = None
    stopper: Stopper | None = None
    export_best: Callable[[PyTree, int], object] | None = None
    shown: tuple[str, ...] = ()
    profile: tuple[int, int] | None = None

    def due(self, done: int, stop: bool, ended: bool = False) -> "Due":
        """Return what is to be done after `done` steps.

        Args:
          done: steps taken.
          stop: whether the run is asked to stop, to be resumed.
          ended: whether it ends there, before its last step.
        """
        last = ended or done == self.total

        def now(key: str) -> bool:
            every = self.log.get(key, 0)
            return bool(every) and done % every == 0

        scored = self.score is not None and (last or now("evaluate_every"))
        return Due(
            last=last,
            stop=stop,
            report=last or now("every") or stop or scored,
            # At the end the loop exports in any case, also of a run that was finished before.
            export=self.export is not None and not last and now(self.export_key),
            draw=self.draw is not None and (last or now(self.draw_key)),
            score=scored,
            save=last or now("checkpoint_every") or stop or scored,
        )


class Due(NamedTuple):
    """What is to be done after a step."""

    last: bool
    stop: bool
    report: bool
    export: bool
    draw: bool
    score: bool
    save: bool
