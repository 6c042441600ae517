"""What both trainings share before their loop: the run folder, and what may change at a resume."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax.config.load import plain
from dmd2_jax.run.checkpoint import Keep, newest_extra
from dmd2_jax.run.folder import check_teacher, open_run
from dmd2_jax.run.loop import CHECKPOINTS, check_room
from dmd2_jax.run.writers import check_writers
from dmd2_jax.runtime.distributed import from_first, say
from dmd2_jax.runtime.whole_file import clear_partial
from dmd2_jax.typing import PyTree

__all__ = ["RESUME_MAY_DIFFER", "keep", "open_training", "say_idle"]

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
        check_room(workdir, shapes, keep(config).most(total))
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


def keep(config: ConfigDict) -> Keep:
    """Return which checkpoints of a run stay, as `config.log` says."""
    return Keep(config.log.keep, config.log.keep_every, config.log.keep_best)
