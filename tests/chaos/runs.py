"""Tiny runs made once, copies of them as a kill would have left them, and what they end with."""

import functools
import random
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.chaos.engine import fine
from tests.tiny import RECIPE, distill_words, results, scratch, student_run, teacher_run


class Halted(NamedTuple):
    """A run that was stopped at its last checkpoint but one.

    Attributes:
      workdir: its folder, which may be harmed.
      words: the command that goes on with it.
      expected: what it ends with.
    """

    workdir: Path
    words: tuple[str, ...]
    expected: dict[str, bytes]

    def same(self) -> bool:
        """Return whether it has ended as one that was left in peace."""
        return results(self.workdir) == self.expected


def teacher_words(workdir: Path, *more: str) -> tuple[str, ...]:
    """Return the command that trains a teacher."""
    return ("train-teacher", f"--config={RECIPE}", f"--workdir={workdir}", *more)


@functools.cache
def other_teacher() -> Path:
    """Return a teacher of another seed; do not change it."""
    workdir = scratch() / "other"
    fine(*teacher_words(workdir, "--config.seed=1"))
    return workdir


def halted(folder: Path, dice: random.Random, students: float = 0.2) -> Halted:
    """Return a run that is to go on; `students` of them are distillations, which take longer."""
    is_student = dice.random() < students
    whole, workdir = student_run() if is_student else teacher_run(), folder / "run"
    shutil.copytree(whole, workdir)
    newest = max(
        map(int, (f.name for f in (workdir / "checkpoints").iterdir() if f.name.isdigit()))
    )
    shutil.rmtree(workdir / "checkpoints" / str(newest))
    for file in workdir.glob("*.safetensors"):
        file.unlink()
    words = tuple(distill_words(workdir)) if is_student else teacher_words(workdir)
    return Halted(workdir, words, results(whole))


def copied(source: Path, target: Path) -> Path:
    """Copy a run to harm it."""
    shutil.copytree(source, target)
    return target


@functools.cache
def drawn(whole: Path, *more: str) -> bytes:
    """Return what `dmd2 sample` writes of a run that nothing was done to."""
    out = scratch() / "drawn.npz"
    fine("sample", f"--workdir={whole}", "--num=2", f"--out={out}", *more)
    return out.read_bytes()
