"""The manifest of a checkpoint, made while Orbax writes the arrays and not before.

Orbax takes JSON that is there when saving begins. Here it takes functions, which it calls in the
background: in each process one that makes its part, and in the first one that joins the parts when
all processes have written, just before the step is given its name.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from dmd2_jax.config.refused import Refused
from dmd2_jax.run.shards import state_handler
from dmd2_jax.runtime.distributed import is_first
from dmd2_jax.runtime.integrity import Manifest
from dmd2_jax.runtime.seal import is_sealed, seal

__all__ = ["Making", "handlers", "manifest"]


class Making(NamedTuple):
    """How a manifest is made.

    Attributes:
      part: returns this process's, anything JSON holds.
      join: takes the parts of all, in their order; returns the manifest.
    """

    part: Callable[[], Any]
    join: Callable[[Sequence[Any]], Manifest]


def handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Return what a manager writes and reads with.

    "state" is written from `shards.held` and read by Orbax's own; "meta" is made by `manifest`.
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("state", ocp.args.PyTreeSave, state_handler())
    registry.add("state", ocp.args.StandardRestore, ocp.StandardCheckpointHandler())
    registry.add("meta", ocp.args.JsonSave, _Later())
    return registry


def manifest(making: Making) -> ocp.args.JsonSave:
    """Return what a manager of `handlers` writes as "meta"."""
    return ocp.args.JsonSave(making)


class _Later(ocp.JsonCheckpointHandler):
    """Writes the JSON that functions make."""

    _making: Making | None = None

    @classmethod
    def typestr(cls) -> str:
        """Name Orbax's own, which writes and reads the same file."""
        return ocp.JsonCheckpointHandler.typestr()

    async def async_save(
        self, directory: epath.Path, item: Any = None, args: Any = None
    ) -> list[ocp.future.Future]:
        """Begin to write this process's part; see `ocp.JsonCheckpointHandler`."""
        self._making = args.item if is_first() else None  # it has the arrays, and is asked there

        async def write() -> None:
            part = seal({"part": args.item.part()})
            _part(directory, jax.process_index()).write_text(json.dumps(part))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="manifest")]

    def finalize(self, directory: epath.Path) -> None:
        """Write the manifest in place of its parts; asked of the first process when all are there.

        Raises:
          Refused: if a part is not there, or not what its process wrote.
        """
        making, self._making = self._making, None
        assert making is not None  # of the save that is being finished
        files = [_part(directory, number) for number in range(jax.process_count())]
        missing = [number for number, file in enumerate(files) if not file.exists()]
        if missing:
            raise Refused(
                f"processes {missing} have written nothing that is seen in {directory}, expected a "
                "folder that all processes share; choose such a one for the run."
            )
        parts = [json.loads(file.read_text()) for file in files]
        if not all(map(is_sealed, parts)):
            raise Refused(
                f"the parts of the manifest in {directory} were altered since they were written, "
                "expected what each process wrote; save again."
            )
        whole = making.join([part["part"] for part in parts])
        (directory / "metadata").write_text(json.dumps(whole))
        for file in files:
            file.unlink()


def _part(directory: epath.Path, process: int) -> epath.Path:
    return directory / f"part_{process}"
