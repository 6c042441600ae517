"""Weights that are written out; those of a run say in their sealed header whose they are.

A sound file may lie under the name of another: of another run, or of another network of this one.
"""

import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.guidance_embedding import GUIDANCE
from dmd2_jax.recipe.classes import DataRecord, record_notes
from dmd2_jax.recipe.guidance import save_student
from dmd2_jax.recipe.open import Family
from dmd2_jax.run.exported import exported_step, is_best
from dmd2_jax.run.sealed_config import run_identity
from dmd2_jax.runtime.distributed import say
from dmd2_jax.typing import Params
from dmd2_jax.weights.state_dict import read_metadata

__all__ = ["Whose", "check_whose", "save_weights", "whose_notes", "written_step"]

_NOTE = "dmd2_of"


class Whose(NamedTuple):
    """What a run writes into the header of its weights.

    Attributes:
      run: its random name.
      role: the name that the file is written under, such as "student_ema_0.999".
      step: of the run.
    """

    run: str
    role: str
    step: int


def save_weights(
    family: Family,
    params: Params,
    path: Path,
    record: DataRecord | None,
    whose: Mapping[str, str] | None = None,
) -> None:
    """Write weights, which say on what they were trained where the classes have names.

    Args:
      family: the network; one of a user's own whose `save` takes no notes writes none.
      params: the weights.
      path: the file.
      record: of the data; None: not known.
      whose: `whose_notes` of a run's own files.
    """
    notes = record_notes(record) | dict(whose or {})
    if GUIDANCE in params:
        save_student(family, params, path, notes)
        return
    if notes and "notes" in inspect.signature(family.save).parameters:
        family.save(params, path, notes=notes)
    else:
        family.save(params, path)


def whose_notes(run: str | None, file: Path, step: int) -> dict[str, str]:
    """Return the note for the header of a file that a run writes.

    Args:
      run: the identity of the run; None: it has none, and there is nothing to note.
      file: its name says the role.
      step: of the run.
    """
    return {} if run is None else {_NOTE: json.dumps(Whose(run, file.stem, step)._asdict())}


def check_whose(file: Path, workdir: Path) -> None:
    """Refuse a file of weights in a run folder that says it is another's.

    Files of older releases, and of other programs, say nothing and are read as they are. That the
    file's bytes are those that were written is for what reads it to check.

    Args:
      file: of weights, on this machine.
      workdir: the folder that it lies in; without the record of a run there, nothing is compared.

    Raises:
      Refused: if it is of another run, or was written under another name.
    """
    of = _read(file)
    try:
        run = None if of is None else run_identity(workdir)
    except Refused:  # damaged, or of another program: what opens a run says so
        return
    if of is None or run is None:
        return
    fault = ""
    if of.run != run:
        fault = f"of another run ({of.run}), expected those of this run ({run})"
    elif of.role != file.stem:
        fault = f"this run's {of.role}, expected its {file.stem}"
    if fault:
        raise Refused(
            f"the weights in {workdir / file.name} are {fault}; copy the run's own back, or write "
            "them once more by the command that began it. Weights of elsewhere are given by their "
            "own file (`weights=FILE`, `config.teacher.weights=FILE`)."
        )
    step = None if is_best(file.name) else exported_step(workdir)
    if step is not None and step != of.step:
        _say_once(
            f"the weights in {workdir / file.name} are of step {of.step}, its others of {step}."
        )


def written_step(file: Path) -> int | None:
    """Return the step that a run's file of weights says it is of; None: it says none."""
    of = _read(file)
    return None if of is None else of.step


@functools.cache
def _say_once(text: str) -> None:  # a command may look for its weights several times
    say(text)


def _read(file: Path) -> Whose | None:
    """Return what a file says; None: nothing, or it cannot be read, which its reader refuses."""
    from safetensors import SafetensorError

    if file.suffix != ".safetensors":
        return None
    try:
        said = json.loads(read_metadata(file)[_NOTE])
        of = Whose(**said)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
        return None
    sound = isinstance(of.run, str) and isinstance(of.role, str) and type(of.step) is int
    return of if sound else None
