"""Exported weights damaged, mostly one bit; sound ones of another run or network."""

import functools
import random
import shutil
from pathlib import Path

from tests.chaos.damages import damage
from tests.chaos.engine import Try, asked, fine
from tests.chaos.runs import copied, drawn, other_teacher
from tests.tiny import RECIPE, distill_words, scratch, student_run, teacher_run

NAME = "exported weights damaged, or of another run or network"
TRIES = 40


def attempt(dice: random.Random, folder: Path) -> Try:
    """Harm a file of weights, then have it read."""
    return dice.choice([_drawn, _drawn, _taught, _converted, _misplaced])(dice, folder)


def _drawn(dice: random.Random, folder: Path) -> Try:
    whole, name = dice.choice([(teacher_run(), "teacher"), (student_run(), "student")])
    workdir, out = copied(whole, folder / "run"), folder / "drawn.npz"
    what = damage(workdir / f"{name}.safetensors", dice)
    words = ("sample", f"--workdir={workdir}", "--num=2", f"--out={out}")
    return asked(
        folder, what, *words, same=lambda: out.read_bytes() == drawn(whole), kept=(workdir,)
    )


def _misplaced(dice: random.Random, folder: Path) -> Try:
    """Put sound weights of the same shapes under the name of a run's own."""
    whole = student_run()
    own = dice.choice(["student", "student_ema_0.9"])
    others = [
        whole / f"{name}.safetensors" for name in ("student", "student_ema_0.9") if name != own
    ]
    others += [run / "teacher.safetensors" for run in (teacher_run(), other_teacher())]
    workdir, other = copied(whole, folder / "run"), dice.choice(others)
    shutil.copyfile(other, workdir / f"{own}.safetensors")
    more = () if own == "student" else ("--ema=0.9",)
    words = dice.choice(
        [
            ("sample", f"--workdir={workdir}", "--num=2", f"--out={folder / 'x.png'}", *more),
            ("convert", workdir, folder / "x.bin", *more),
            ("export", f"--workdir={workdir}", f"--out={folder / 'x'}", *more),
        ]
    )
    what = f"{own} is {other.parent.name}'s {other.stem}"
    return asked(folder, what, *words, same=lambda: False, kept=(workdir,))


def _taught(dice: random.Random, folder: Path) -> Try:
    file = copied(teacher_run(), folder / "teacher") / "teacher.safetensors"
    what = damage(file, dice)
    words = [*distill_words(folder / "run"), f"--config.teacher.weights={file}", "--dry_run"]
    return asked(folder, what, *words, same=lambda: False, kept=(file.parent,))


def _converted(dice: random.Random, folder: Path) -> Try:
    source = _file(dice.choice([".bin", ".safetensors"]))
    file, out = folder / source.name, folder / "again.safetensors"
    file.write_bytes(source.read_bytes())
    what = damage(file, dice)
    words = ("convert", file, out, f"--config={RECIPE}")
    return asked(folder, what, *words, same=lambda: out.read_bytes() == _again(source), kept=())


@functools.cache
def _file(ending: str) -> Path:
    out = scratch() / f"x{ending}"
    fine("convert", teacher_run(), out)
    return out


@functools.cache
def _again(source: Path) -> bytes:
    out = source.with_name("again.safetensors")
    fine("convert", source, out, f"--config={RECIPE}")
    return out.read_bytes()
