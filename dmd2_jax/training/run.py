"""What both trainings share: opening the run folder, resuming, batches made ahead, the loop."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax.config.load import plain
from dmd2_jax.recipe.open import Recipe
from dmd2_jax.run.checkpoint import Checkpoints, Keep, newest_extra
from dmd2_jax.run.folder import check_teacher, open_run
from dmd2_jax.run.loop import CHECKPOINTS, check_room, examples_counter, run_loop, start_or_resume
from dmd2_jax.run.writers import check_writers
from dmd2_jax.runtime.distributed import from_first, say
from dmd2_jax.runtime.prefetch import Prefetch
from dmd2_jax.runtime.whole_file import clear_partial
from dmd2_jax.typing import PyTree

__all__ = ["RESUME_MAY_DIFFER", "open_training", "run_training", "say_idle"]

RESUME_MAY_DIFFER = (
    "name",
    "data.path",
    "data.prompts",
    "distill.pairs",
    "model.pipeline",
    "data.max_corrupt",
    "data.workers",
    "teacher.steps",
    "teacher.weights",
    "distill.cycles",
    "optim.max_skipped_in_a_row",
    "mesh",
    "log",
    "evaluate",
)
"""Keys that a resumed run may change: its length, where it runs, and what it reports.

The teacher may lie elsewhere; that it is the same one is checked by its weights' digest.
"""


def open_training(
    config: ConfigDict,
    workdir: Path,
    command: str,
    shapes: PyTree,
    *,
    total: int,
    teacher: Mapping[str, str] | None = None,
    allow_change: Sequence[str] = (),
    dry_run: bool = False,
) -> bool:
    """Claim a run folder, or recognise the run that is there, before anything is compiled.

    Args:
      config: the whole config.
      workdir: the run folder.
      command: "train-teacher" or "distill".
      shapes: of the state.
      total: steps of the whole run.
      teacher: path and digest of the teacher's weights; None if there is none.
      allow_change: keys of the config that may differ from those of the run that is resumed.
      dry_run: check only, leaving the disk as it was.

    Returns:
      True if the folder already held this run.

    Raises:
      ValueError: if the disk has no room, the config, the teacher or the state's shapes are not
        those of the run that is there, or a writer cannot be had.
    """

    def check_saved() -> None:
        newest = newest_extra(workdir / CHECKPOINTS, shapes)
        if newest is not None and teacher is not None:
            check_teacher(newest[1].get("teacher"), teacher)

    def open_folder() -> bool:
        check_writers(config.log)
        check_room(workdir, shapes, _keep(config).most(total))
        resumed = open_run(
            workdir,
            command,
            plain(config),
            may_differ=RESUME_MAY_DIFFER,
            allow=allow_change,
            check=check_saved,
            dry_run=dry_run,
        )
        if resumed and not dry_run:
            clear_partial(workdir)
        return resumed

    return from_first(open_folder)


def say_idle(mesh: Mesh) -> None:
    """Say on standard error that the mesh leaves devices out, if it does."""
    count = jax.device_count()
    if mesh.size < count:
        platform = mesh.devices.flat[0].platform
        say(
            f"config.mesh takes {mesh.size} of the {count} {platform} devices here, the others "
            f"idle; config.mesh.data=-1 takes all."
        )


def run_training(
    advance: Callable[[PyTree, PyTree, int], tuple[PyTree, dict[str, Any]]],
    recipe: Recipe,
    workdir: Path,
    shapes: PyTree,
    *,
    total: int,
    shardings: PyTree,
    make_state: Callable[[], PyTree],
    make_batch: Callable[[int, int], PyTree],
    examples_per_step: int,
    teacher: Mapping[str, str] | None = None,
    **options: Any,
) -> PyTree:
    """Resume or start the training of an opened run, and take it to its end.

    Args:
      advance: (state, batch, step) -> (state, metrics); may donate the state.
      recipe: the recipe.
      workdir: from `open_training`, as are `shapes`, `total` and `teacher`.
      shapes: of the state.
      shardings: where it lies: a tree of Shardings, or one for all.
      total: steps of the whole run.
      make_state: makes the state of step 0, best where it belongs: what is made elsewhere has to
        fit there.
      make_batch: (step, examples read before) -> the batch, on the devices; called ahead of time,
        in a thread of its own.
      examples_per_step: how many examples a step reads.
      teacher: path and digest of the teacher's weights.
      options: of `run_loop`.

    Returns:
      The state after `total` steps.

    Raises:
      Interrupted: if asked to stop; the run is then saved.
      CheckpointError, DivergedError: see `run_loop`.
    """
    config = recipe.config
    identity = {} if teacher is None else {"teacher": dict(teacher)}
    with Checkpoints(workdir / CHECKPOINTS, _keep(config)) as checkpoints:
        resumed = start_or_resume(checkpoints, shapes, make_state, shardings)
        examples_seen = examples_counter(resumed, examples_per_step)

        def describe(done: int) -> dict[str, Any]:
            return {"config": plain(config), "examples_seen": examples_seen(done)} | identity

        def batch_of(step: int) -> PyTree:
            return make_batch(step, examples_seen(step))

        with Prefetch(batch_of, resumed.step, total) as batches:
            return run_loop(
                lambda state, i: advance(state, batches.take(i), i),
                resumed,
                total=total,
                workdir=workdir,
                checkpoints=checkpoints,
                log=config.log,
                max_skipped_in_a_row=config.optim.max_skipped_in_a_row,
                describe=describe,
                waited=lambda: batches.waited,
                **options,
            )


def _keep(config: ConfigDict) -> Keep:
    return Keep(config.log.keep, config.log.keep_every, config.log.keep_best)
