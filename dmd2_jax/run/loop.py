"""The loop that every training command runs: step, report, draw, save, and stop when asked."""

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Sharding

from dmd2_jax.run.checkpoint import Checkpoints, Restored, state_bytes
from dmd2_jax.run.folder import check_free_space
from dmd2_jax.run.metrics import Progress, plain_value
from dmd2_jax.run.speed import Stopwatch
from dmd2_jax.run.writers import Writers
from dmd2_jax.runtime.distributed import is_first, put, say
from dmd2_jax.runtime.preemption import GracefulStop, Interrupted
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

CHECKPOINTS = "checkpoints"
"""The folder of a run folder that holds its checkpoints."""


class DivergedError(RuntimeError):
    """Too many updates in a row had gradients that are not finite."""


def run_loop(
    advance: Callable[[PyTree, int], tuple[PyTree, dict[str, Any]]],
    resumed: Restored,
    *,
    total: int,
    workdir: str | Path,
    checkpoints: Checkpoints,
    log: Mapping[str, Any],
    unit: str,
    images_per_step: int,
    updates_per_step: int = 1,
    max_skipped_in_a_row: int = 10,
    describe: Callable[[int], dict[str, Any]] | None = None,
    draw: Callable[[PyTree, int], Mapping[str, Path] | None] | None = None,
    draw_key: str = "grid_every",
    score: Callable[[PyTree], dict[str, float]] | None = None,
    shown: tuple[str, ...] = (),
    waited: Callable[[], float] | None = None,
    profile: tuple[int, int] | None = None,
) -> PyTree:
    """Take the steps of a run that are left.

    Args:
      advance: (state, step) -> (state, metrics); may donate the state.
      resumed: where the run stands, from `start_or_resume`.
      total: steps of the whole run.
      workdir: the run folder; metrics.jsonl and speed.jsonl go there.
      checkpoints: where states are saved.
      log: `every`, `draw_key`, `checkpoint_every` and `evaluate_every` (0 or absent: never), in
        steps; what `Writers` takes.
      unit: what a step is called, for example "cycle".
      images_per_step: images a step, for the images/s figure.
      updates_per_step: optimiser updates a step.
      max_skipped_in_a_row: the value of the metric `skipped_in_a_row` that stops the run.
      describe: steps taken -> what belongs to the checkpoint beside the state: the config, the
        position in the data. The metrics of that step are added to it.
      draw: (state, step) -> pictures by name, called from time to time and at the end.
      draw_key: the key of `log` that says every how many steps.
      score: state -> metrics, called every `evaluate_every` steps and at the end. They are
        reported and saved with the state, which is saved then.
      shown: names of the metrics to show in the progress display; all are in metrics.jsonl.
      waited: returns the seconds that `advance` has waited for data so far; None: not measured.
      profile: (steps to let pass, steps to trace) into WORKDIR/profile; None traces nothing.

    Returns:
      The state after `total` steps; it is checkpointed.

    Raises:
      Interrupted: after Ctrl-C or SIGTERM, when the state is saved.
      DivergedError: if too many updates in a row were skipped for gradients that are not finite.
        None of the checkpoints is from within that row.
      CheckpointError: if a state cannot be saved.
    """
    workdir = Path(workdir)
    state, extra, start = resumed
    with (
        Writers(workdir, resumed_step=start, log=log) as writers,
        GracefulStop() as stop,
        Progress(
            total=total, initial=start, description=unit, images_per_step=images_per_step
        ) as progress,
        Profiler(workdir / "profile", profile if is_first() else None, unit=unit) as profiler,
    ):
        watch = Stopwatch(
            unit=unit,
            images_per_step=images_per_step,
            turns_per_step=updates_per_step,
            draw_every=log[draw_key],
            draw_key=f"log.{draw_key}",
            waited=waited,
        )
        window, saver = Window(extra.get("window")), _Saver(checkpoints, describe)
        metrics: dict[str, Any] = {}
        if start < total:
            say(f"{unit} {start + 1} of {total}: compiling ...")
        for step in range(start, total):
            # One step in flight: the host prepares the next batch while the device works.
            jax.block_until_ready(metrics)
            _check_in_a_row(metrics, max_skipped_in_a_row, f"{unit} {step}", checkpoints)
            with profiler.step(step):
                state, metrics = advance(state, step)
            window.add(metrics)
            profiler.after(metrics)
            done, values = step + 1, None
            due = _agenda(done, total, log, stop.reached(done), draw and draw_key, score)
            if step == start or due.draw or due.score:  # so that the clock gives each its own time
                jax.block_until_ready(metrics)
            watch.step_done()
            if due.report:
                _check_in_a_row(metrics, max_skipped_in_a_row, f"{unit} {done}", checkpoints)
                values = window.report(metrics)
                if score is not None and due.score:
                    with watch.spending("evaluating"):
                        values |= score(state)
                writers.write(done, values)
                if done % log["every"] == 0:  # a report out of turn takes nothing from the next
                    window.clear()
            progress.update(done, _displayed(values, shown))
            if draw is not None and due.draw:
                with watch.spending("drawing"):
                    pictures = draw(state, done)
                writers.images(done, pictures)
            with watch.spending("saving"):
                saver.step(done, state, metrics, values, window, due)
            if due.report:
                writers.speed(done, watch.report())
            if due.stop and not due.last:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped by {stop.requested} after {unit} {done} of {total}; saved in "
                    f"{checkpoints.directory}. To resume:\n  {resume_hint()}",
                    stop.exit_code,
                )
    checkpoints.wait()
    return state


class _Due(NamedTuple):
    """What is to be done after a step."""

    last: bool
    stop: bool
    report: bool
    draw: bool
    score: bool
    save: bool


def _agenda(
    done: int,
    total: int,
    log: Mapping[str, Any],
    stop: bool,
    draw_key: str | None,
    score: Callable | None,
) -> _Due:
    last = done == total

    def at(key: str) -> bool:
        every = log.get(key, 0)
        return last or (bool(every) and done % every == 0)

    scored = score is not None and at("evaluate_every")
    return _Due(
        last=last,
        stop=stop,
        report=at("every") or stop or scored,
        draw=draw_key is not None and at(draw_key),
        score=scored,
        save=at("checkpoint_every") or stop or scored,
    )


class _Saver:
    """Save a state when it is due, or as soon after that as no row of updates is being refused.

    Such a row may be the end of the run: until it is over, the checkpoints stay those from before.
    """

    def __init__(
        self, checkpoints: Checkpoints, describe: Callable[[int], dict[str, Any]] | None
    ) -> None:
        self._checkpoints, self._describe = checkpoints, describe
        self._due = False

    def step(
        self,
        done: int,
        state: PyTree,
        metrics: Mapping[str, Any],
        values: Mapping[str, Any] | None,
        window: Window,
        due: _Due,
    ) -> None:
        """Save the state of this step if it should be; `values` are the metrics as reported."""
        self._due |= due.save
        if not self._due or (_in_a_row(metrics) and not due.last and not due.stop):
            return
        values = window.report(metrics) if values is None else values
        extra = dict(self._describe(done)) if self._describe is not None else {}
        extra["metrics"] = {name: plain_value(value) for name, value in values.items()}
        extra["window"] = window.to_json()
        self._checkpoints.save(done, state, extra)
        self._due = False


def check_room(workdir: str | Path, state: PyTree, keep: int) -> None:
    """Refuse to start where the disk cannot hold the checkpoints of a run.

    Args:
      workdir: the run folder.
      state: the state, or its shapes.
      keep: checkpoints kept; one more is on disk while it replaces the oldest.

    Raises:
      RunFolderError: if there is too little room for those that are not there yet.
    """
    present = len(list((Path(workdir) / CHECKPOINTS).glob("[0-9]*")))
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
    program = [name] if shutil.which(name) else [Path(sys.executable).name, "-m", "dmd2_jax.main"]
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
            f"lower the learning rates (or use float32) in a new --workdir, or resume with "
            f"--allow_change=optim."
        )


def _displayed(values: Mapping[str, Any] | None, shown: tuple[str, ...]) -> dict[str, Any] | None:
    if values is None:
        return None
    displayed = {name: values[name] for name in shown if name in values}
    for name in ("skipped_updates", "skipped_in_a_row"):
        if values.get(name):
            displayed[name] = values[name]
    return displayed
