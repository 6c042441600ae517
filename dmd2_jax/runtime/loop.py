"""The loop that every training command runs: step, report, draw, save, and stop when asked."""

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding

from dmd2_jax.runtime.checkpoint import Checkpoints, state_bytes
from dmd2_jax.runtime.metrics import Progress
from dmd2_jax.runtime.preemption import GracefulStop, Interrupted
from dmd2_jax.runtime.profiler import Profiler
from dmd2_jax.runtime.run_folder import check_free_space
from dmd2_jax.runtime.speed import Stopwatch
from dmd2_jax.runtime.summaries import Window
from dmd2_jax.runtime.writers import Writers
from dmd2_jax.typing import PyTree

__all__ = [
    "CHECKPOINTS",
    "DivergedError",
    "check_room",
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
    state: PyTree,
    *,
    start: int,
    total: int,
    workdir: str | Path,
    checkpoints: Checkpoints,
    log: Mapping[str, Any],
    unit: str,
    images_per_step: int,
    updates_per_step: int = 1,
    draw: Callable[[PyTree, int], Mapping[str, Path] | None] | None = None,
    shown: tuple[str, ...] = (),
    waited: Callable[[], float] | None = None,
    profile: tuple[int, int] | None = None,
) -> PyTree:
    """Take the steps `start` .. `total` - 1 of a run.

    Args:
      advance: (state, step) -> (state, metrics); may donate the state.
      state: where the run stands after `start` steps.
      start: steps taken already.
      total: steps of the whole run.
      workdir: the run folder; metrics.jsonl and speed.jsonl go there.
      checkpoints: where states are saved.
      log: `every`, `grid_every` and `checkpoint_every`, in steps; what `Writers` takes.
      unit: what a step is called, for example "cycle".
      images_per_step: images a step, for the images/s figure.
      updates_per_step: optimiser updates a step, against which `skipped_updates` is counted.
      draw: (state, step) -> pictures by name, called every `grid_every` steps and at the end.
      shown: names of the metrics to show in the progress display; all are in metrics.jsonl.
      waited: returns the seconds that `advance` has waited for data so far; None: not measured.
      profile: (steps to let pass, steps to trace) into WORKDIR/profile; None traces nothing.

    Returns:
      The state after `total` steps; it is checkpointed.

    Raises:
      Interrupted: after Ctrl-C or SIGTERM, when the state is saved.
      DivergedError: if half or more of the updates since the last report were skipped for
        gradients that are not finite. The checkpoints are then left as they are.
      CheckpointError: if a state cannot be saved.
    """
    workdir = Path(workdir)
    skipped = 0
    with (
        Writers(workdir, resumed_step=start, log=log) as writers,
        GracefulStop() as stop,
        Progress(
            total=total, initial=start, description=unit, images_per_step=images_per_step
        ) as progress,
        Profiler(workdir / "profile", profile, unit=unit) as profiler,
    ):
        watch = Stopwatch(
            unit=unit,
            images_per_step=images_per_step,
            turns_per_step=updates_per_step,
            grid_every=log["grid_every"],
            waited=waited,
        )
        window = Window(checkpoints.extra(start).get("window"))
        last_report, metrics = start, {}
        if start < total:
            print(f"{unit} {start + 1} of {total}: compiling ...", file=sys.stderr, flush=True)
        for step in range(start, total):
            # One step in flight: the host prepares the next batch while the device works.
            jax.block_until_ready(metrics)
            with profiler.step(step):
                state, metrics = advance(state, step)
            window.add(metrics)
            profiler.after(metrics)
            done = step + 1
            last, values = done == total, None
            reported = last or done % log["every"] == 0 or stop.requested
            drawn = draw is not None and (last or done % log["grid_every"] == 0)
            if step == start or drawn:  # so that the clock gives each its own time
                jax.block_until_ready(metrics)
            watch.step_done()
            if reported:
                values = window.report(metrics)
                skipped = _check_skipped(
                    values, skipped, (done - last_report) * updates_per_step, done, unit, workdir
                )
                writers.write(done, values)
                last_report = done
                values = {name: values[name] for name in shown if name in values}
                if skipped:
                    values["skipped updates"] = skipped
                if done % log["every"] == 0:  # a report out of turn takes nothing from the next
                    window.clear()
            progress.update(done, values)
            if drawn:
                with watch.spending("drawing"):
                    pictures = draw(state, done)
                writers.images(done, pictures)
            if last or done % log["checkpoint_every"] == 0 or stop.requested:
                with watch.spending("saving"):
                    checkpoints.save(done, state, {"window": window.to_json()})
            if reported:
                writers.speed(done, watch.report())
            if stop.requested and not last:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped by {stop.requested} after {unit} {done} of {total}; saved in "
                    f"{checkpoints.directory}. To resume:\n  {resume_hint()}",
                    stop.exit_code,
                )
    checkpoints.wait()
    return state


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
    sharding: Sharding,
) -> tuple[PyTree, int]:
    """Return the state to go on from and the steps it has taken.

    Args:
      checkpoints: of the run.
      shapes: the state's shapes.
      make: makes the state of step 0; called only where there is no checkpoint.
      sharding: where every leaf is put.

    Raises:
      CheckpointError: if there are checkpoints and none is good.
    """
    if checkpoints.latest_step() is None:
        return jax.device_put(make(), sharding), 0
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
    state, _, step = checkpoints.restore(template)
    return state, step


def resume_hint() -> str:
    """Return the command line of this process, ready to be typed again."""
    name = Path(sys.argv[0]).name
    program = [name] if shutil.which(name) else [Path(sys.executable).name, "-m", "dmd2_jax.main"]
    return shlex.join([*program, *sys.argv[1:]])


def _check_skipped(
    values: Mapping[str, Any], before: int, updates: int, done: int, unit: str, workdir: Path
) -> int:
    skipped = int(values.get("skipped_updates", 0))
    if updates and 2 * (skipped - before) >= updates:
        raise DivergedError(
            f"{skipped - before} of the last {updates} updates before {unit} {done} had gradients "
            f"that are not finite, expected fewer than half; the checkpoints in {workdir} are "
            f"from before: lower the learning rates (or use float32) in a new --workdir."
        )
    return skipped
