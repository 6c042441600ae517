"""exported.json: which step the weights that lie in a run folder are of, sealed."""

from pathlib import Path
from typing import Any

from dmd2_jax.config.text import read_json
from dmd2_jax.run.folder import LENGTHS, newest_step, read_run, write_json
from dmd2_jax.run.sealed_config import RunFolderError
from dmd2_jax.runtime.places import path_of
from dmd2_jax.runtime.seal import SEAL, check_reached, is_sealed, seal

__all__ = ["BEST", "EXPORTED", "exported_step", "is_best", "unfinished", "write_exported"]

EXPORTED = "exported.json"
"""Its name."""

BEST = "best.safetensors"
"""The weights that were the best by the figure that `log.stop_when` has patience for; their own
header says of which step they are."""

_BEST = (BEST, "best_lora.safetensors")  # the adapters alone beside it
_MOST_STEPS = 2**40


def write_exported(workdir: str | Path, step: int, reason: str = "") -> None:
    """Record which step the weights that lie in a run folder are of.

    Args:
      workdir: the run folder.
      step: steps taken.
      reason: why the run ended there, before its last step; "": it did not.
    """
    ended = {"ended": reason} if reason else {}
    write_json(path_of(workdir) / EXPORTED, seal({"step": step, **ended}))


def exported_step(workdir: str | Path) -> int | None:
    """Return which step the weights that lie in a run folder are of; None: that cannot be told.

    Args:
      workdir: the run folder. Runs of older releases recorded no step: their newest checkpoint
        tells.

    Raises:
      RunFolderError: if what is recorded is damaged.
      OSError: if it cannot be read at the moment.
    """
    record = _record(path_of(workdir) / EXPORTED)
    return newest_step(path_of(workdir)) if record is None else record["step"]


def _record(path: Path) -> dict[str, Any] | None:
    """Return what is recorded, a sound "step" among it; None: there is nothing."""
    try:
        record = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        check_reached(error, path)
        raise _refused(path, str(error)) from error
    step = record.get("step") if isinstance(record, dict) else None
    if type(step) is not int or not 0 <= step < _MOST_STEPS:
        raise _refused(path, f"it says step {_shown(step)}")
    if SEAL in record and not is_sealed(record):
        raise _refused(path, "it does not match its own seal")
    return record


def is_best(name: str) -> bool:
    """Return whether a file of a run folder is of its best weights, and so of a step of its own."""
    return name in _BEST


def unfinished(workdir: str | Path) -> str:
    """Return what a run folder's weights lack to be the finished run's, as a sentence; "" if none.

    Args:
      workdir: the run folder. What is no run counts as finished.

    Raises:
      RunFolderError: see `exported_step`.
    """
    folder, step = path_of(workdir), exported_step(workdir)
    goes_on = step is not None and (newest_step(folder) or 0) > step
    if (_record(folder / EXPORTED) or {}).get("ended") and not goes_on:  # by log.stop_when
        return ""
    try:
        command, config = read_run(folder)
        group, key, unit = LENGTHS[command]
        total = int(config[group][key])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if step is None or step >= total:
        return ""
    return (
        f"the weights in {folder} are of {unit} {step} of {total}: that run is not finished. The "
        f"command that began it, given again, goes on with it."
    )


def _shown(value: Any) -> str:
    return f"{value!r:.40}"


def _refused(path: Path, fault: str) -> RunFolderError:
    return RunFolderError(
        f"{path} is not what the run wrote ({fault}), expected the step that its weights are of; "
        "restore it from a copy, or remove it: the newest checkpoint is taken for it then."
    )
