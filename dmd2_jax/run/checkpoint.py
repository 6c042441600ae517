"""Checkpoints that never load wrong numbers: Orbax underneath, digests of all arrays on top.

Orbax writes in the background and renames a finished checkpoint into place, so a killed
process leaves only an ignored temporary directory. What Orbax does not do is notice altered
bytes: a flipped bit restores silently. So the sealed manifest of `integrity.py` lies beside the
arrays, everything is compared with it on restore, and a step that fails falls back to the
newest good one, aloud.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dmd2_jax.config.refused import Refused
from dmd2_jax.run.digests import altered, joined, part_digests
from dmd2_jax.run.manifest import Making, handlers, manifest
from dmd2_jax.run.parts import part_entries, read_part
from dmd2_jax.run.quiet import say_failures_once
from dmd2_jax.run.retention import Keep, Retention
from dmd2_jax.run.shards import held
from dmd2_jax.run.staging import Staging, copied
from dmd2_jax.runtime.closing import Closing
from dmd2_jax.runtime.distributed import from_all, is_first
from dmd2_jax.runtime.integrity import (
    Misplaced,
    mismatches,
    read_manifest,
    refuse_links,
    sealed,
    some,
    step_folders,
)
from dmd2_jax.runtime.places import (
    absolute,
    holds_checkpoints,
    in_bucket,
    move_folder,
    path_of,
)
from dmd2_jax.runtime.preemption import deferred
from dmd2_jax.runtime.seal import check_reached
from dmd2_jax.typing import PyTree

__all__ = ["CheckpointError", "Checkpoints", "Keep", "Restored", "newest_extra", "state_bytes"]

_DISCARDED = "discarded"

_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns."""

    state: PyTree
    extra: dict[str, Any]
    step: int


class Checkpoints(Closing):
    """Save and restore one run's state under one directory.

    Example:
      with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
          checkpoints.save(step, state, {"examples_seen": 6400})
          state, extra, step = checkpoints.restore(template)
          weights, extra, step = checkpoints.restore_part("generator.params", shapes)
    """

    def __init__(
        self,
        directory: str | Path,
        keep: int | Keep = 3,
        read_only: bool = False,
        run: str | None = None,
    ) -> None:
        """Open (and, unless read_only, create) the directory.

        Args:
          directory: where the numbered step folders lie.
          keep: which steps to keep; a number is how many of the latest, >= 1.
          read_only: never create, delete or rename anything.
          run: the run's identity, which every checkpoint records; those of another one are
            refused. None: it is not recorded, and those of any run are read.

        Raises:
          ValueError: if keep < 1, or there are symbolic links in the directory.
        """
        keep = keep if isinstance(keep, Keep) else Keep(keep)
        self.directory = self._here = absolute(directory)
        self._staging = None
        if not holds_checkpoints(self.directory):
            self._staging = None if read_only else Staging(self.directory)
            self._here = self._staging.folder if self._staging else copied(self.directory)
        self._read_only, self._run = read_only, run
        refuse_links(self._here)
        self._retention = Retention(self._here, keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else self._retention,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            # Renamed first, removed by us: a process killed in the midst leaves no half a step.
            # (A bucket has no renaming; half a step is there without its mark, or not the newest.)
            todelete_subdir=None if read_only or in_bucket(self._here) else _DISCARDED,
        )
        self._sweep()
        say_failures_once()
        self._manager = ocp.CheckpointManager(
            self._here, options=options, handler_registry=handlers()
        )

    def save(self, step: int, state: PyTree, extra: dict[str, Any] | None = None) -> None:
        """Start writing `state` as checkpoint `step`; a step that exists already is left alone.

        State and `extra` become visible together, in one rename, or not at all.

        Returns once the arrays are copied, so that `state` may be donated; the writing goes on
        in the background. A failure of it is raised by the next `save`, `wait` or `close`.

        Args:
          step: how many steps were taken, >= 0.
          state: pytree of arrays.
          extra: anything JSON can hold; `extra["metrics"]` is what the best are chosen by.

        Raises:
          CheckpointError: if this or the previous save failed, for example on a full disk.
          ValueError: if there are symbolic links in the directory.
        """
        self.wait()
        refuse_links(self._here)
        self._sweep()
        if step in self._manager.all_steps():
            return
        state = held(state)
        of = {"step": step} | ({} if self._run is None else {"run": self._run})
        extra = json.loads(json.dumps(extra or {}))  # as it is now, whoever changes it later
        self._retention.note(step, extra)
        making = Making(
            lambda: part_digests(state), lambda parts: sealed(joined(state, parts), extra, of)
        )
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=manifest(making))
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._save_failure(error) from error
        if self._staging is not None:
            self._staging.begin(self._finish)

    def restore(self, template: PyTree, step: int | None = None) -> Restored:
        """Read the newest good checkpoint, or exactly `step`, into the form of `template`.

        Args:
          template: pytree of arrays or `jax.ShapeDtypeStruct`s; a leaf's sharding is where the
            array is put, whatever it was saved from; without one, the first local device.
          step: the step to read; None reads the newest that passes, and sets aside (as
            `damaged-STEP`) the newer ones that do not.

        Returns:
          (state, extra, step).

        Raises:
          CheckpointError: if there is no checkpoint, or none passes its digests.
          ValueError: if there is none of this step, or the checkpoint is sound but of another
            structure, shape, dtype, step or run.
          OSError: if one cannot be read at the moment, which is then left as it is.
        """
        return self._newest_good(step, lambda at: self._attempt(at, template))

    def restore_part(self, part: str, template: PyTree, step: int | None = None) -> Restored:
        """Read one branch of a state, for example the weights alone, and nothing else.

        The optimiser's state is neither read nor built.

        Args:
          part: names and positions, "generator.params" or "ema.0".
          template: see `restore`; leaves without a sharding come as NumPy arrays.
          step: see `restore`.

        Returns:
          (the branch, extra, step).

        Raises:
          CheckpointError: see `restore`.
          ValueError: see `restore`; also if the state has no such branch.
        """
        return self._newest_good(step, lambda at: self._attempt_part(at, part, template))

    def _newest_good(
        self, step: int | None, attempt: Callable[[int], "Restored | str"]
    ) -> Restored:
        self.wait()
        refuse_links(self._here)
        present = sorted(self._manager.all_steps(), reverse=True)
        steps = present if step is None else [step]
        if not present:
            raise CheckpointError(
                f"no checkpoint in {self.directory}, expected one at least; start a run there "
                f"first."
            )
        if not set(steps) <= set(present):
            raise Refused(
                f"checkpoint {step} is not in {self.directory}, expected one of "
                f"{sorted(present)}; choose one."
            )
        faults: dict[int, str] = {}
        for candidate in steps:
            fault = attempt(candidate)
            if isinstance(fault, Restored):
                self._set_aside(faults, candidate)
                return fault
            faults[candidate] = fault
        listed = "; ".join(f"step {number}: {fault}" for number, fault in faults.items())
        raise CheckpointError(
            f"no good checkpoint in {self.directory} ({listed}), expected arrays that match "
            f"their recorded digests; restore the folder from a copy, or start again in an "
            f"empty workdir."
        )

    def latest_step(self) -> int | None:
        """Return the newest step on disk, good or not; None if there is none."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Return the steps on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Block until the last save is on disk.

        Raises:
          CheckpointError: if it failed.
        """
        try:
            with deferred():  # torn, it would read as a failure to save
                if self._staging is not None:
                    self._staging.wait()
                self._finish()
        except Exception as error:
            raise self._save_failure(error) from error

    def close(self) -> None:
        """Finish the last save and release the directory."""
        try:
            self.wait()
            self._sweep()
        finally:
            self._manager.close()
            if self._staging is not None:
                self._staging.close()

    def _finish(self) -> None:
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def _sweep(self) -> None:
        """Remove the checkpoints that are not to be kept."""
        if not self._read_only and is_first() and not in_bucket(self._here):
            shutil.rmtree(self._here / _DISCARDED, ignore_errors=True)

    def _attempt(self, step: int, template: PyTree) -> "Restored | str":
        """Read one step; return what is wrong with it as text if it is damaged."""
        folder = self._here / str(step)
        try:
            manifest = read_manifest(folder, self._run)
        except Misplaced:
            raise
        except ValueError as error:
            return str(error)
        recorded = manifest["arrays"]
        _check_template(recorded, template, folder)
        wanted = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(template)))
        state, fault = _read(
            folder, recorded, lambda: self._manager.restore(step, args=wanted).state
        )
        # Each process reads its own part: what one cannot read, none may go on from.
        faults = [fault for fault in from_all(fault) if fault]
        return faults[0] if faults else Restored(state, manifest["extra"], step)

    def _attempt_part(self, step: int, part: str, template: PyTree) -> "Restored | str":
        folder = self._here / str(step)
        try:
            manifest = read_manifest(folder, self._run)
        except Misplaced:
            raise
        except ValueError as error:
            return str(error)
        recorded = part_entries(manifest["arrays"], part)
        if not recorded:
            raise Refused(
                f"checkpoint {folder} has no part {part!r}, expected names and positions that "
                f"lead to arrays, such as {some(list(manifest['arrays']))}; correct the part."
            )
        _check_template(recorded, template, folder)
        state, fault = _read(
            folder, recorded, lambda: read_part(folder / "state", part, template), part
        )
        return fault or Restored(state, manifest["extra"], step)

    def _set_aside(self, faults: dict[int, str], used: int) -> None:
        for step, fault in faults.items():
            moved = ""
            if not self._read_only and is_first():
                target = self._here / f"damaged-{step}"
                for number in range(1, 1000):
                    if not target.exists():
                        break
                    target = self._here / f"damaged-{step}.{number}"
                move_folder(self._here / str(step), target)
                moved = f" It is kept as {target.name}."
            _log.warning(
                "checkpoint %d of %s is damaged: %s; falling back to step %d.%s",
                step,
                self.directory,
                fault,
                used,
                moved,
            )
        if faults and not self._read_only:
            from_all("set aside")
            self._manager.reload()
            if self._staging is not None:
                self._staging.begin(self._finish)

    def _save_failure(self, error: Exception) -> CheckpointError:
        staging = self._staging
        sound = sorted(step_folders(self._here)) if staging is None else staging.steps()
        return CheckpointError(
            f"saving a checkpoint to {self.directory} failed ({_brief(error)}), expected room and "
            f"permission to write; the earlier checkpoints {sound} are untouched: free some disk "
            f"(or lower log.keep) and run the same command again to resume."
        )


def state_bytes(state: PyTree) -> int:
    """Return the size in bytes of a pytree of arrays or ShapeDtypeStructs."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state)
    )


def newest_extra(
    directory: str | Path, template: PyTree, run: str | None = None
) -> tuple[int, dict[str, Any]] | None:
    """Return (step, extra) of the newest checkpoint whose manifest is sound; None if there is none.

    Opens nothing but that file, so that a run can be refused before anything is written.

    Args:
      directory: of the checkpoints.
      template: what the state must look like.
      run: see `Checkpoints`.

    Raises:
      ValueError: if the checkpoint is of another structure, step or run, or there are symbolic
        links.
    """
    refuse_links(path_of(directory))
    for step, folder in step_folders(path_of(directory)).items():
        try:
            manifest = read_manifest(folder, run)
        except Misplaced:
            raise
        except ValueError:
            continue  # restoring will say so, and set it aside
        _check_template(manifest["arrays"], template, folder)
        return step, manifest["extra"]
    return None


def _read(
    folder: Path, recorded: dict[str, Any], read: Callable[[], PyTree], part: str = ""
) -> tuple[PyTree, str]:
    """Return the arrays of one step, or a part of them, and what is wrong with them."""
    try:
        state = read()
        wrong = altered(state, recorded, folder / "state", part)
    except MemoryError:  # no fault of the step's
        raise
    except Exception as error:
        check_reached(error, folder)
        return None, f"its arrays cannot be read ({_brief(error)})"
    return state, f"digest mismatch in {some(wrong)}" if wrong else ""


def _check_template(recorded: dict[str, Any], template: PyTree, folder: Path) -> None:
    differences = mismatches(recorded, template)
    if differences:
        raise Refused(
            f"checkpoint {folder} has another structure than this config makes: {differences}; "
            f"run with the config it was made with, or choose another workdir."
        )


def _abstract(template: PyTree) -> PyTree:
    # Orbax would put a leaf without a sharding where it was saved from, which may be a machine that
    # is not there any more.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None)
        # On a device a NumPy array of 64 bits would lose half of them.
        if sharding is None and jax.dtypes.canonicalize_dtype(leaf.dtype) == leaf.dtype:
            sharding = here
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(abstract, template)


def _brief(error: Exception) -> str:
    """Return one line; of a long one both ends, as the cause (a full disk) stands last."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    return text if len(text) <= 300 else f"{text[:147]} ... {text[-147:]}"
