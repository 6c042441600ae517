"""The loop that every training command runs: step, report, draw, save, and stop when asked."""

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from dmd2_jax.runtime.checkpoint import Checkpoints
from dmd2_jax.runtime.metrics import MetricsWriter, Progress, read_metrics
from dmd2_jax.runtime.pictures import save_curves
from dmd2_jax.runtime.preemption import GracefulStop, Interrupted
from dmd2_jax.typing import PyTree

__all__ = ["DivergedError", "resume_hint", "run_loop"]


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
    log: Mapping[str, int],
    unit: str,
    images_per_step: int,
    updates_per_step: int = 1,
    draw: Callable[[PyTree, int], None] | None = None,
    shown: tuple[str, ...] = (),
) -> PyTree:
    """Take the steps `start` .. `total` - 1 of a run.

    Args:
      advance: (state, step) -> (state, metrics); may donate the state.
      state: where the run stands after `start` steps.
      start: steps taken already.
      total: steps of the whole run.
      workdir: the run folder; metrics.jsonl and curves.png go there.
      checkpoints: where states are saved.
      log: `every`, `grid_every` and `checkpoint_every`, in steps.
      unit: what a step is called, for example "cycle".
      images_per_step: images a step, for the images/s figure.
      updates_per_step: optimiser updates a step, against which `skipped_updates` is counted.
      draw: (state, step) -> None, called every `grid_every` steps and at the end.
      shown: names of the metrics to show in the progress display; all are in metrics.jsonl.

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
        MetricsWriter(workdir, resumed_step=start) as writer,
        GracefulStop() as stop,
        Progress(
            total=total, initial=start, description=unit, images_per_step=images_per_step
        ) as progress,
    ):
        last_report, metrics = start, {}
        for step in range(start, total):
            # One step in flight: the host prepares the next batch while the device works.
            jax.block_until_ready(metrics)
            state, metrics = advance(state, step)
            done = step + 1
            last, values = done == total, None
            if last or done % log["every"] == 0 or stop.requested:
                values = jax.device_get(metrics)
                skipped = _check_skipped(
                    values, skipped, (done - last_report) * updates_per_step, done, unit, workdir
                )
                writer.write(done, values)
                last_report = done
                values = {name: values[name] for name in shown if name in values}
            progress.update(done, values)
            if draw is not None and (last or done % log["grid_every"] == 0):
                draw(state, done)
                save_curves(read_metrics(writer.path), workdir / "curves.png", unit=unit)
            if last or done % log["checkpoint_every"] == 0 or stop.requested:
                checkpoints.save(done, state)
            if stop.requested and not last:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped by {stop.requested} after {unit} {done} of {total}; saved in "
                    f"{checkpoints.directory}. To resume:\n  {resume_hint()}",
                    stop.exit_code,
                )
    checkpoints.wait()
    return state


def resume_hint() -> str:
    """Return the command line of this process, ready to be typed again."""
    import shlex

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
