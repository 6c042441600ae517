"""What both trainings share before their loop: the run folder, and what may change at a resume."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax.config.load import plain
from dmd2_jax.data import Source
from dmd2_jax.recipe.classes import (
    check_resumed,
    check_same_everywhere,
    data_record,
    read_record,
    write_record,
)
from dmd2_jax.run.checkpoint import Keep, newest_extra
from dmd2_jax.run.folder import check_teacher, check_writable, open_run
from dmd2_jax.run.loop import CHECKPOINTS, check_room
from dmd2_jax.run.names import check_names
from dmd2_jax.run.sealed_config import run_identity
from dmd2_jax.run.writers import check_writers
from dmd2_jax.runtime.devices import device_record
from dmd2_jax.runtime.distributed import from_first
from dmd2_jax.runtime.owner import check_free, owned
from dmd2_jax.runtime.whole_file import clear_partial
from dmd2_jax.typing import PyTree

__all__ = ["keep", "may_differ", "open_training"]

_MAY_DIFFER = (
    "name",
    "data.path",
    "data.prompts",
    "distill.pairs",
    "model.pipeline",
    "data.max_corrupt",
    "data.digest",
    "data.workers",
    "teacher.steps",
    "teacher.weights",
    "distill.cycles",
    "optim.max_skipped_in_a_row",
    "mesh",
    "log",
)
"""Keys that a resumed run may change: its length, where it runs, and what it reports.

The teacher may lie elsewhere; that it is the same one is checked by its weights' digest.
"""
_STAYS = "training_samples"
"""Of more of them the FID is lower: the best weights and `log.stop_when` compare all that a run
measured. Of `evaluate` everything else may change."""


def may_differ(config: ConfigDict, command: str) -> tuple[str, ...]:
    """Return the keys that a resumed run may change: those of every run, and what it does not use.

    Args:
      config: the whole config.
      command: "train-teacher" or "distill".
    """
    free = (*_MAY_DIFFER, *(f"evaluate.{key}" for key in config.evaluate if key != _STAYS))
    if command == "train-teacher":  # one recipe is for both; guidance is for its pictures alone
        return (*free, "distill", "optim")
    unused = ["model.dropout", *(f"teacher.{key}" for key in config.teacher)]
    if config.distill.regression_weight is None:
        unused.append("distill.regression_pairs")
    else:  # what the teacher's pairs are made by
        unused.remove("teacher.sampler_steps")
    if not config.distill.lora_rank:
        unused.append("distill.lora_alpha")
    return (*free, *unused)


@contextlib.contextmanager
def open_training(
    config: ConfigDict,
    workdir: Path,
    command: str,
    shapes: PyTree,
    *,
    dataset: Source,
    total: int,
    mesh: Mesh,
    teacher: Mapping[str, str] | None = None,
    allow_change: Sequence[str] = (),
    dry_run: bool = False,
) -> Iterator[bool]:
    """Claim a run folder, or recognise the run that is there, before anything is compiled.

    No other process can have it until the body ends.

    Args:
      config: the whole config.
      workdir: the run folder.
      command: "train-teacher" or "distill".
      shapes: of the state.
      dataset: the training examples.
      total: steps of the whole run.
      mesh: the devices; config.json records them.
      teacher: path and digest of the teacher's weights; None if there is none.
      allow_change: keys of the config that may differ from those of the run that is resumed.
      dry_run: check only, leaving the disk as it was.

    Yields:
      True if the folder already held this run.

    Raises:
      ValueError: if another process has the folder, the disk has no room, the config, the data,
        the teacher or the state's shapes are not those of the run that is there, or a writer
        cannot be had.
    """
    record = data_record(dataset)
    check_same_everywhere(record)

    def check_saved() -> None:
        newest = newest_extra(workdir / CHECKPOINTS, shapes, run_identity(workdir))
        if newest is None:
            return
        if teacher is not None:
            check_teacher(newest[1].get("teacher"), teacher)
        # The folder's first: it has what a resumption was allowed to change.
        recorded = read_record(workdir) or newest[1].get("data")
        check_resumed(recorded, dataset, str(workdir), allow_change, workdir)

    def open_folder() -> bool:
        check_writers(config.log)
        check_room(workdir, shapes, keep(config).most(total))
        check_writable(workdir, keep=not dry_run)
        check_names(workdir)
        if dry_run:
            check_free(workdir)
        else:  # before anything is read that another one may be changing
            until_the_end.enter_context(owned(workdir))
        resumed = open_run(
            workdir,
            command,
            plain(config),
            may_differ=may_differ(config, command),
            allow=allow_change,
            check=check_saved,
            dry_run=dry_run,
            devices=device_record(mesh),
        )
        if not dry_run:
            write_record(workdir, record, dataset.files)
        if resumed and not dry_run:
            clear_partial(workdir)
        return resumed

    with contextlib.ExitStack() as until_the_end:
        yield from_first(open_folder)


def keep(config: ConfigDict) -> Keep:
    """Return which checkpoints of a run stay, as `config.log` says."""
    return Keep(config.log.keep, config.log.keep_every, config.log.keep_best)
