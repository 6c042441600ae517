"""The loop that every training command runs: step, report, draw, save, and stop when asked."""

import contextlib
import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding

from dmd2_jax.run.checkpoint import Checkpoints, Restored, state_bytes
from dmd2_jax.run.ending import Ending
from dmd2_jax.run.exported import write_exported
from dmd2_jax.run.folder import check_free_space
from dmd2_jax.run.job import Due, Job
from dmd2_jax.run.metrics import METRICS, Progress, plain_value, reported
from dmd2_jax.run.sealed_config import run_identity
from dmd2_jax.run.speed import Stopwatch
from dmd2_jax.run.writers import Writers
from dmd2_jax.runtime.distributed import is_first, put, say
from dmd2_jax.runtime.places import in_bucket, path_of
from dmd2_jax.runtime.preemption import GracefulStop, Interrupted
from dmd2_jax.runtime.prefetch import Prefetch
from dmd2_jax.runtime.profiler import Profiler
from dmd2_jax.runtime.summaries import Window
from dmd2_jax.typing import PyTree

__all__ = [
    "CHECKPOINTS",
    "DivergedError",
    "check_room",
    "examples_counter",
    "resume_hint",
    "run_loop",
    "start_or_resume",
]

_log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""The folder of a run folder that holds its checkpoints."""


class DivergedError(RuntimeError):
    """Too many updates in a row had gradients that are not finite."""


def run_loop(job: Job) -> PyTree:
    """Resume or start a run, and take it to its end.

    Args:
      job: the run.

    Returns:
      The state after `job.total` steps, or fewer where `job.stopper` ends the run; it is
      checkpointed, and its weights are exported.

    Raises:
      Interrupted: after Ctrl-C or SIGTERM, when the state is saved.
      DivergedError: if too many updates in a row were skipped for gradients that are not finite.
        None of the checkpoints is from within that row.
      CheckpointError: if a state cannot be saved, or there are checkpoints and none is good.
    """
    with Checkpoints(
        job.workdir / CHECKPOINTS, job.keep, run=run_identity(job.workdir)
    ) as checkpoints:
        resumed = start_or_resume(checkpoints, job.shapes, job.make_state, job.shardings)
        examples_seen = examples_counter(resumed, job.examples_per_step)

        def batch_of(step: int) -> PyTree:
            return job.make_batch(step, examples_seen(step))

        def describe(done: int) -> dict[str, Any]:
            return {**job.record, "examples_seen": examples_seen(done)}

        with Prefetch(batch_of, resumed.step, job.total) as batches:
            state, done, reason = _steps(job, resumed, batches, checkpoints, describe)
    _export(job, state, done, reason)
    return state


def _steps(
    job: Job,
    resumed: Restored,
    batches: Prefetch,
    checkpoints: Checkpoints,
    describe: Callable[[int], dict[str, Any]],
) -> tuple[PyTree, int, str]:
    """Take the steps that are left; what `describe` returns is saved beside the state.

    Returns:
      (state, steps taken, why the run ended before its last step or "").
    """
    unit, total, log = job.unit, job.total, job.log
    state, extra, start = resumed
    with (
        Writers(
            job.workdir,
            resumed_step=start,
            log=log,
            rows=extra.get("rows"),
            rows_digest=extra.get("rows_digest"),
        ) as writers,
        GracefulStop() as stop,
        Progress(
            total=total, initial=start, description=unit, images_per_step=job.images_per_step
        ) as progress,
        Profiler(job.workdir / "profile", job.profile if is_first() else None, unit=unit) as traced,
    ):
        watch = Stopwatch(
            unit=unit,
            images_per_step=job.images_per_step,
            turns_per_step=job.updates_per_step,
            draw_every=log[job.draw_key],
            draw_key=f"log.{job.draw_key}",
            waited=lambda: batches.waited,
        )
        window = Window(extra.get("window"))
        saver = _Saver(checkpoints, lambda at: describe(at) | writers.record, writers.sync)
        pictures = _Pictures(job, writers)
        judge = job.judge if is_first() else None
        if judge is not None and start:
            judge.replay(reported(job.workdir / METRICS))
        ending = Ending(job, checkpoints)
        ending.replay(state, start)
        metrics: dict[str, Any] = {}

        def check_in_a_row(when: int) -> None:
            _check_in_a_row(metrics, job.max_skipped_in_a_row, f"{unit} {when}", checkpoints)

        done = start
        if ending.reason:
            say(
                f"{unit} {start} of {total}: already ended by log.stop_when: {ending.reason}; its "
                "weights are written once more. To go on, change config.log.stop_when."
            )
        elif start >= total:
            say(
                f"{unit} {start} of {total}: already finished; its weights are written once more. "
                f"To go on, raise config.{job.total_key}; for images, `dmd2 sample`."
            )
        else:
            progress.compiling()
        for step in range(start, start if ending.reason else total):
            # One step in flight: the host prepares the next batch while the device works.
            jax.block_until_ready(metrics)
            check_in_a_row(step)
            with traced.step(step):
                with saver.rescuing(step, state, metrics, window, f"{unit} {step} of {total}"):
                    batch = batches.take(step)
                state, metrics = job.advance(state, batch, step)
            window.add(metrics)
            traced.after(metrics)
            done, values = step + 1, None
            due = job.due(done, stop.reached(done))
            if step == start or due.export or due.draw or due.score:
                jax.block_until_ready(metrics)  # so that the clock gives each its own time
            if step == start:
                progress.compiled()
            watch.step_done()
            if due.report:
                check_in_a_row(done)
                values = window.report(metrics)
                if job.score is not None and due.score:
                    with watch.spending("evaluating"):
                        values |= job.score(state)
                if judge is not None:
                    values |= judge.report(done, values)
                if ending.report(done, values):
                    due = job.due(done, due.stop, ended=True)
                writers.write(done, values)
                if done % log["every"] == 0:  # a report out of turn takes nothing from the next
                    window.clear()
            progress.update(done, _displayed(values, job.shown))
            if due.export:
                with watch.spending("saving"):
                    _export(job, state, done)
            if due.draw:
                with watch.spending("drawing"):
                    writers.sync()  # which the curves are drawn from
                    pictures.draw(state, done, due.last)
            with watch.spending("saving"):
                saver.step(done, state, metrics, values, window, due)
                ending.saved(state, done)
            if due.report:
                writers.speed(done, watch.report())
            if due.save:
                writers.sync()
            if due.stop and not due.last:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped by {stop.requested} after {unit} {done} of {total}; saved in "
                    f"{checkpoints.directory}. To resume:\n  {resume_hint()}",
                    stop.exit_code,
                )
            if ending.reason:
                say(f"{unit} {done} of {total}: ended by log.stop_when: {ending.reason}.")
                break
    checkpoints.wait()
    return state, done, ending.reason


def _export(job: Job, state: PyTree, done: int, reason: str = "") -> None:
    """Write the weights, and then which step they are of: a reader tells a half-finished run's."""
    if job.export is None:
        return
    job.export(state, done)
    if is_first():
        write_exported(job.workdir, done, reason)


class _Pictures:
    """Draw; what cannot be drawn is said once and ends no run."""

    def __init__(self, job: Job, writers: Writers) -> None:
        self._job, self._writers = job, writers
        self._failed = False

    def draw(self, state: PyTree, done: int, last: bool) -> None:
        """Draw the pictures of this step and show them."""
        if self._job.draw is None:
            return
        try:
            self._writers.images(done, self._job.draw(state, done, last))
        except Exception as error:  # of any kind: a decoder's, a font's, a device's memory
            if not self._failed:
                _log.warning(
                    "the pictures of %s %d cannot be drawn (%s: %s), expected them in %s; the "
                    "training goes on, and tries again at the next. This is said once.",
                    self._job.unit,
                    done,
                    type(error).__name__,
                    error,
                    self._job.workdir,
                )
            self._failed = True


_RESCUE = Due(last=False, stop=True, report=False, export=False, draw=False, score=False, save=True)


class _Saver:
    """Save a state when it is due, or as soon after that as no row of updates is being refused.

    Such a row may be the end of the run: until it is over, the checkpoints stay those from before.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        describe: Callable[[int], dict[str, Any]],
        before: Callable[[], object],
    ) -> None:
        self._checkpoints, self._describe, self._before = checkpoints, describe, before
        self._due = False

    def step(
        self,
        done: int,
        state: PyTree,
        metrics: Mapping[str, Any],
        values: Mapping[str, Any] | None,
        window: Window,
        due: Due,
    ) -> None:
        """Save the state of this step if it should be; `values` are the metrics as reported."""
        self._due |= due.save
        if not self._due or (_in_a_row(metrics) and not due.last and not due.stop):
            return
        values = window.report(metrics) if values is None else values
        extra = self._describe(done)
        extra["metrics"] = {name: plain_value(value) for name, value in values.items()}
        extra["window"] = window.to_json()
        self._before()  # the metrics up to here are to be there as soon as the state is
        self._checkpoints.save(done, state, extra)
        self._due = False

    @contextlib.contextmanager
    def rescuing(
        self, done: int, state: PyTree, metrics: Mapping[str, Any], window: Window, when: str
    ) -> Iterator[None]:
        """Where the next batch cannot be read, save the state before the error ends the run.

        Nothing is saved that is saved already or within a row of refused updates. Of several
        processes one may be alone with such an error, and none can save without the others.
        """
        try:
            yield
        except Exception:
            if metrics and jax.process_count() == 1 and not _in_a_row(metrics):
                self._checkpoints.wait()
                if self._checkpoints.latest_step() != done:
                    self.step(done, state, metrics, None, window, _RESCUE)
                    self._checkpoints.wait()
                _log.warning("%s is saved in %s.", when, self._checkpoints.directory)
            raise


def check_room(workdir: str | Path, state: PyTree, keep: int) -> None:
    """Refuse to start where the disk cannot hold the checkpoints of a run.

    Args:
      workdir: the run folder.
      state: the state, or its shapes.
      keep: checkpoints kept; one more is on disk while it replaces the oldest.

    Raises:
      RunFolderError: if there is too little room for those that are not there yet.
    """
    if in_bucket(workdir):
        return
    present = len(list((path_of(workdir) / CHECKPOINTS).glob("[0-9]*")))
    missing = max(1, keep + 1 - present)
    size = state_bytes(state)
    check_free_space(workdir, missing * size, f"{missing} more checkpoints of {size / 1e6:,.1f} MB")


def start_or_resume(
    checkpoints: Checkpoints,
    shapes: PyTree,
    make: Callable[[], PyTree],
    shardings: PyTree,
) -> Restored:
    """Return the state to go on from, what was saved with it, and the steps it has taken.

    Args:
      checkpoints: of the run.
      shapes: the state's shapes.
      make: makes the state of step 0, best where it belongs; called only where there is no
        checkpoint.
      shardings: where the leaves are put: a tree as the state, or one Sharding for all.

    Raises:
      CheckpointError: if there are checkpoints and none is good.
    """
    if checkpoints.latest_step() is None:
        return Restored(put(make(), shardings), {}, 0)
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    template = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )
    return checkpoints.restore(template)


def examples_counter(resumed: Restored, per_step: int) -> Callable[[int], int]:
    """Return what counts the examples that a run has read: steps taken -> examples.

    The count goes on from the one that was saved, so that the position in the data stays right
    when the batch size changes on the way.

    Args:
      resumed: from `start_or_resume`.
      per_step: examples a step reads now.
    """
    before = int(resumed.extra.get("examples_seen", resumed.step * per_step))
    return lambda done: before + (done - resumed.step) * per_step


def resume_hint() -> str:
    """Return the command line of this process, ready to be typed again."""
    name = Path(sys.argv[0]).name
    as_module = [Path(sys.executable).name, "-m", "dmd2_jax.commands.main"]
    program = [name] if shutil.which(name) else as_module
    return shlex.join([*program, *sys.argv[1:]])


def _in_a_row(metrics: Mapping[str, Any]) -> int:
    return int(metrics.get("skipped_in_a_row", 0))


def _check_in_a_row(
    metrics: Mapping[str, Any], most: int, when: str, checkpoints: Checkpoints
) -> None:
    if _in_a_row(metrics) >= most:
        raise DivergedError(
            f"{_in_a_row(metrics)} updates in a row up to {when} had gradients that are not "
            f"finite, expected fewer than config.optim.max_skipped_in_a_row={most}; the "
            f"checkpoints {checkpoints.all_steps()} in {checkpoints.directory} are from before: "
            f"lower the learning rates (or use float32) in a new run folder, or resume with "
            f"`allow_change=optim`."
        )


def _displayed(values: Mapping[str, Any] | None, shown: tuple[str, ...]) -> dict[str, Any] | None:
    if values is None:
        return None
    displayed = {name: values[name] for name in shown if name in values}
    displayed |= {
        name.replace("warning_", "WARNING "): value
        for name, value in values.items()
        if name.startswith("warning_")
    }
    for name in ("skipped_updates", "skipped_in_a_row"):
        if values.get(name):
            displayed[name] = values[name]
    return displayed
