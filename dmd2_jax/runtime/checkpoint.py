"""Checkpoints that never load wrong numbers: Orbax underneath, a digest of every array on top.

Orbax writes in the background and renames a finished checkpoint into place, so a killed
process leaves only an ignored temporary directory. What Orbax does not do is notice altered
bytes: a flipped bit restores silently. So the manifest beside the arrays records the shape,
dtype and BLAKE2b digest of each, all are compared on restore, and a step that fails falls back
to the newest good one, aloud.
"""

import hashlib
import logging
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dmd2_jax.typing import Array, PyTree

__all__ = ["CheckpointError", "Checkpoints", "Restored", "state_bytes"]

_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns."""

    state: PyTree
    extra: dict[str, Any]
    step: int


class Checkpoints:
    """Save and restore one run's state under one directory.

    Example:
      with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
          checkpoints.save(step, state, {"examples_seen": 6400})
          state, extra, step = checkpoints.restore(template)
    """

    def __init__(self, directory: str | Path, keep: int = 3, read_only: bool = False) -> None:
        """Open (and, unless read_only, create) the directory.

        Args:
          directory: where the numbered step folders lie.
          keep: how many of the latest steps to keep, >= 1.
          read_only: never create, delete or rename anything.

        Raises:
          ValueError: if keep < 1.
        """
        if keep < 1:
            raise ValueError(f"keep={keep} checkpoints, expected at least 1; set log.keep=1.")
        self.directory = Path(directory).absolute()
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: PyTree, extra: dict[str, Any] | None = None) -> None:
        """Start writing `state` as checkpoint `step`; a step that exists already is left alone.

        Returns once the arrays are copied, so that `state` may be donated; the writing goes on
        in the background. A failure of it is raised by the next `save`, `wait` or `close`.

        Args:
          step: how many steps were taken, >= 0.
          state: pytree of arrays.
          extra: anything JSON can hold.

        Raises:
          CheckpointError: if this or the previous save failed, for example on a full disk.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        # Own copies: on CPU a view would share the buffer that the next step overwrites.
        state = jax.tree.map(_copied, state)
        meta = {"extra": extra or {}, "arrays": _manifest(state)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._save_failure(error) from error

    def restore(self, template: PyTree, step: int | None = None) -> Restored:
        """Read the newest good checkpoint, or exactly `step`, into the form of `template`.

        Args:
          template: pytree of arrays or `jax.ShapeDtypeStruct`s; a leaf's sharding, where it has
            one, is where the array is put.
          step: the step to read; None reads the newest that passes, and sets aside (as
            `damaged-STEP`) the newer ones that do not.

        Returns:
          (state, extra, step).

        Raises:
          CheckpointError: if there is no checkpoint, or none passes its digests.
          ValueError: if the checkpoint is sound but of another structure, shape or dtype.
        """
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True) if step is None else [step]
        if not steps or (step is not None and step not in self._manager.all_steps()):
            raise CheckpointError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self.directory}, "
                f"expected one of {sorted(self._manager.all_steps())}; start a run there first."
            )
        faults: dict[int, str] = {}
        for candidate in steps:
            fault = self._attempt(candidate, template)
            if isinstance(fault, Restored):
                self._set_aside(faults, candidate)
                return fault
            faults[candidate] = fault
        listed = "; ".join(f"step {number}: {fault}" for number, fault in faults.items())
        raise CheckpointError(
            f"no good checkpoint in {self.directory} ({listed}), expected arrays that match "
            f"their recorded digests; restore the folder from a copy, or start again in an "
            f"empty --workdir."
        )

    def extra(self, step: int) -> dict[str, Any]:
        """Return what was saved beside the state of `step`; {} if there is no such checkpoint."""
        self.wait()
        if step not in self._manager.all_steps():
            return {}
        item = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=item).meta["extra"]

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
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._save_failure(error) from error

    def close(self) -> None:
        """Finish the last save and release the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _attempt(self, step: int, template: PyTree) -> "Restored | str":
        """Read one step; return what is wrong with it as text if it is damaged."""
        try:
            meta = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            ).meta
            recorded, extra = meta["arrays"], meta["extra"]
        except Exception as error:
            return f"its manifest cannot be read ({_brief(error)})"
        _check_template(recorded, template, self.directory / str(step))
        try:
            state = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(template))),
            ).state
        except Exception as error:
            return f"its arrays cannot be read ({_brief(error)})"
        found = _manifest(state)
        altered = [path for path in recorded if found[path] != recorded[path]]
        if altered:
            return f"digest mismatch in {_some(altered)}"
        return Restored(state, extra, step)

    def _set_aside(self, faults: dict[int, str], used: int) -> None:
        for step, fault in faults.items():
            moved = ""
            if not self._read_only and jax.process_index() == 0:
                target = self.directory / f"damaged-{step}"
                for number in range(1, 1000):
                    if not target.exists():
                        break
                    target = self.directory / f"damaged-{step}.{number}"
                (self.directory / str(step)).rename(target)
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
            self._manager.reload()

    def _save_failure(self, error: Exception) -> CheckpointError:
        sound = sorted(
            int(entry.name) for entry in self.directory.glob("*") if entry.name.isdigit()
        )
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


def _copied(leaf: Array | np.ndarray) -> Array | np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf  # on an accelerator pod Orbax copies each host's shards itself
    return np.array(leaf, copy=True)


def _on_host(leaf: Array | np.ndarray) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _paths(tree: PyTree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _manifest(state: PyTree) -> dict[str, dict[str, Any]]:
    """Describe every array as {path: {shape, dtype, digest}}."""
    manifest = {}
    for path, leaf in _paths(state).items():
        array = np.ascontiguousarray(_on_host(leaf))
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
        manifest[path] = {
            "shape": list(np.shape(leaf)),
            "dtype": str(array.dtype),
            "digest": digest,
        }
    return manifest


def _check_template(recorded: dict[str, Any], template: PyTree, folder: Path) -> None:
    expected = {
        path: (list(leaf.shape), str(np.dtype(leaf.dtype)))
        for path, leaf in _paths(template).items()
    }
    found = {path: (entry["shape"], entry["dtype"]) for path, entry in recorded.items()}
    missing = sorted(expected.keys() - found.keys())
    surplus = sorted(found.keys() - expected.keys())
    differing = [
        f"{path} is {found[path]}, expected {expected[path]}"
        for path in sorted(expected.keys() & found.keys())
        if expected[path] != found[path]
    ]
    if missing or surplus or differing:
        raise ValueError(
            f"checkpoint {folder} has another structure than this config makes: "
            f"{len(missing)} arrays missing {_some(missing)}, {len(surplus)} too many "
            f"{_some(surplus)}, {len(differing)} differing {_some(differing)}; run with the "
            f"config it was made with, or choose another --workdir."
        )


def _abstract(template: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
        ),
        template,
    )


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"[{', '.join(names[:most])}]{more}"


def _brief(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    return text if len(text) <= 300 else text[:297] + "..."
