"""Sound checkpoints in wrong places."""

import random
import shutil
from pathlib import Path

from tests.chaos.engine import Try, asked
from tests.chaos.runs import copied, drawn, halted, other_teacher
from tests.tiny import teacher_run

NAME = "checkpoints renamed, swapped, of another run"
TRIES = 20


def _renamed(steps: Path, dice: random.Random) -> None:
    (steps / "4").rename(steps / str(dice.choice([1, 3, 5])))


def _swapped(steps: Path, dice: random.Random) -> None:
    (steps / "4").rename(steps / "x")
    (steps / "2").rename(steps / "4")
    (steps / "x").rename(steps / "2")


def _copied(steps: Path, dice: random.Random) -> None:
    shutil.copytree(steps / "2", steps / str(dice.choice([3, 5])))


def _foreign(steps: Path, dice: random.Random) -> None:
    shutil.rmtree(steps / "4")
    shutil.copytree(other_teacher() / "checkpoints" / "4", steps / "4")


def _all_foreign(steps: Path, dice: random.Random) -> None:
    shutil.rmtree(steps)
    shutil.copytree(other_teacher() / "checkpoints", steps)


def _part(steps: Path, dice: random.Random) -> None:
    part = dice.choice(["state", "meta"])
    shutil.rmtree(steps / "4" / part)
    shutil.copytree(steps / "2" / part, steps / "4" / part)


def _foreign_part(steps: Path, dice: random.Random) -> None:
    part = dice.choice(["state", "meta"])
    shutil.rmtree(steps / "4" / part)
    shutil.copytree(other_teacher() / "checkpoints" / "4" / part, steps / "4" / part)


def _linked(steps: Path, dice: random.Random) -> None:
    (steps / "4").rename(steps.parent / "elsewhere")
    (steps / "4").symlink_to(steps.parent / "elsewhere")


WAYS = {
    "renamed": _renamed,
    "swapped": _swapped,
    "copied": _copied,
    "one of another run": _foreign,
    "all of another run": _all_foreign,
    "a part of another step": _part,
    "a part of another run": _foreign_part,
    "a link": _linked,
}


def attempt(dice: random.Random, folder: Path) -> Try:
    """Put a checkpoint elsewhere, then go on with the run, or draw from that checkpoint."""
    way = dice.choice(sorted(WAYS))
    if dice.random() < 0.7:
        run = halted(folder, dice, students=0)
        WAYS[way](run.workdir / "checkpoints", dice)
        return asked(folder, way, *run.words, same=run.same, kept=(run.workdir / "checkpoints",))
    workdir, out = copied(teacher_run(), folder / "run"), folder / "drawn.npz"
    WAYS[way](workdir / "checkpoints", dice)
    step = dice.choice(sorted(f.name for f in (workdir / "checkpoints").glob("[0-9]*")))
    words = ("sample", f"--workdir={workdir}", "--num=2", f"--out={out}", f"--checkpoint={step}")

    def same() -> bool:
        whole = (teacher_run() / "checkpoints" / step).is_dir()
        return whole and out.read_bytes() == drawn(teacher_run(), f"--checkpoint={step}")

    return asked(folder, way, *words, same=same, kept=(workdir,))
