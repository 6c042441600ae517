"""A run's config.json damaged."""

import functools
import random
from pathlib import Path

from tests.chaos.damages import damage
from tests.chaos.engine import Try, asked, fine
from tests.chaos.runs import copied, drawn, halted
from tests.run.test_sealed_config import DAMAGES
from tests.tiny import distill_words, scratch, student_run, teacher_run

NAME = "a run's config.json damaged"
TRIES = 50


def attempt(dice: random.Random, folder: Path) -> Try:
    """Harm the record of a run, then go on with it, or have it read."""
    way = dice.choice([_resumed, _drawn, _drawn, _reported, _converted, _taught])
    return way(dice, folder)


def _harmed(workdir: Path, dice: random.Random) -> str:
    file = workdir / "config.json"
    if dice.random() < 0.5:
        return damage(file, dice)
    name = dice.choice(sorted(DAMAGES))
    file.write_bytes(DAMAGES[name](file.read_bytes()))
    return name


def _resumed(dice: random.Random, folder: Path) -> Try:
    run = halted(folder, dice)
    what = _harmed(run.workdir, dice)
    return asked(folder, what, *run.words, same=run.same, kept=(run.workdir,))


def _drawn(dice: random.Random, folder: Path) -> Try:
    whole = dice.choice([teacher_run(), student_run()])
    workdir, out = copied(whole, folder / "run"), folder / "drawn.npz"
    what = _harmed(workdir, dice)
    words = ("sample", f"--workdir={workdir}", "--num=2", f"--out={out}")
    return asked(
        folder, what, *words, same=lambda: out.read_bytes() == drawn(whole), kept=(workdir,)
    )


def _reported(dice: random.Random, folder: Path) -> Try:
    workdir = copied(student_run(), folder / "run")
    what = _harmed(workdir, dice)
    words = ("report", f"--workdir={workdir}", f"--out={folder / 'report.html'}")
    # A page of a record that is not what was written: the page has its name.
    return asked(folder, what, *words, same=lambda: what.startswith("config.json"), kept=(workdir,))


def _converted(dice: random.Random, folder: Path) -> Try:
    workdir, out = copied(teacher_run(), folder / "run"), folder / "x.safetensors"
    what = _harmed(workdir, dice)
    words = ("convert", workdir, out)
    return asked(folder, what, *words, same=lambda: out.read_bytes() == _whole(), kept=(workdir,))


@functools.cache
def _whole() -> bytes:
    out = scratch() / "x.safetensors"
    fine("convert", teacher_run(), out)
    return out.read_bytes()


def _taught(dice: random.Random, folder: Path) -> Try:
    workdir = copied(teacher_run(), folder / "teacher")
    what = _harmed(workdir, dice)
    words = [*distill_words(folder / "run"), f"--config.teacher.weights={workdir}", "--dry_run"]
    # The weights are the same, and it is they that count.
    return asked(folder, what, *words, same=lambda: True, kept=(workdir,))
