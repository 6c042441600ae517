"""A run's config.json: sealed, with the identity that its checkpoints carry."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.seal import SEAL, check_reached, is_sealed

__all__ = ["RunFolderError", "is_edited", "new_identity", "read_config", "run_identity"]

_RUN = "run"
_KINDS: dict[str, type] = {
    "command": str,
    "config": dict,
    "place": str,
    _RUN: str,
    "changes": list,
    "devices": list,
}
"""What a config.json has; those of older releases lack some."""


class RunFolderError(Refused):
    """A run folder cannot be used for this run."""


def new_identity() -> str:
    """Return a random name for a run."""
    return uuid.uuid4().hex


def run_identity(workdir: str | Path) -> str | None:
    """Return the random name of a run, which its checkpoints carry; None: it has none yet.

    Args:
      workdir: the run folder. Those of older releases get theirs when they are resumed.
    """
    path = path_of(workdir) / "config.json"
    return read_config(path).get(_RUN) if path.exists() else None


def is_edited(record: Mapping[str, Any]) -> bool:
    """Return whether somebody took the seal off; config.json of older releases never had one."""
    return SEAL not in record and _RUN in record


def read_config(path: Path) -> dict[str, Any]:
    """Return what a config.json says, if it is what was sealed.

    Raises:
      RunFolderError: if it is missing or damaged.
      OSError: if it cannot be read at the moment.
    """
    try:
        record = read_json(path)
        odd = [k for k, kind in _KINDS.items() if not isinstance(record.get(k, kind()), kind)]
        odd += [key for key in ("command", "config") if key not in record]
        fault = f"{', '.join(map(repr, odd))} missing or of another kind" if odd else ""
    except FileNotFoundError as error:
        raise RunFolderError(
            f"no run in workdir {path.parent}, expected a config.json there; give the workdir of a "
            f"training."
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        check_reached(error, path)
        fault = str(error)
    if fault:
        raise RunFolderError(
            f"{path} cannot be read ({fault}), expected the record of a run; restore it from a "
            f"copy or choose another workdir."
        )
    if SEAL in record and not is_sealed(record):
        raise RunFolderError(
            f"{path} is not what the run wrote: it does not match its own seal, expected an "
            f"unchanged file; restore it from a copy, or, if it was edited on purpose, accept it "
            f'by removing its entry "{SEAL}".'
        )
    return record
