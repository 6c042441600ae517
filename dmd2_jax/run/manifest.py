"""Digests of a checkpoint's arrays, made while Orbax writes the arrays and not before.

Orbax takes the manifest as JSON that is there when saving begins. Here it takes a function, which
it calls in the background; the step is whole when both are written.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from dmd2_jax.runtime.distributed import is_first
from dmd2_jax.runtime.integrity import Manifest, array_entries
from dmd2_jax.typing import PyTree

__all__ = ["entries_of", "handlers", "manifest"]


def handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """Return what a manager writes and reads with: "state" by Orbax's own, "meta" by `manifest`."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    state = ocp.StandardCheckpointHandler()
    registry.add("state", ocp.args.StandardSave, state)
    registry.add("state", ocp.args.StandardRestore, state)
    registry.add("meta", ocp.args.JsonSave, _Later())
    return registry


def manifest(make: Callable[[], Manifest]) -> ocp.args.JsonSave:
    """Return what a manager of `handlers` writes as "meta": what `make` returns in its thread."""
    return ocp.args.JsonSave(make)


def entries_of(state: PyTree) -> Callable[[], dict[str, dict[str, Any]]]:
    """Return what describes the arrays of a state when it is called, in any thread.

    Args:
      state: arrays that nobody changes.
    """
    if jax.process_count() == 1:
        return lambda: array_entries(state)
    entries = array_entries(state)  # several exchange their parts: all of them, here and now
    return lambda: entries


class _Later(ocp.JsonCheckpointHandler):
    """Writes the JSON that a function makes."""

    @classmethod
    def typestr(cls) -> str:
        """Name Orbax's own, which writes and reads the same file."""
        return ocp.JsonCheckpointHandler.typestr()

    async def async_save(
        self, directory: epath.Path, item: Any = None, args: Any = None
    ) -> list[ocp.future.Future]:
        """Begin to write; see `ocp.JsonCheckpointHandler`."""

        async def write() -> None:
            content = args.item()
            if is_first():
                (directory / "metadata").write_text(json.dumps(content))

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="manifest")]
