"""Files of checkpoints damaged."""

import random
from pathlib import Path

from tests.chaos.damages import damage
from tests.chaos.engine import Try, asked
from tests.chaos.runs import copied, drawn, halted
from tests.tiny import student_run, teacher_run

NAME = "a file of a checkpoint damaged or gone"
TRIES = 40


def attempt(dice: random.Random, folder: Path) -> Try:
    """Harm a file of a checkpoint, then go on with the run, or draw from that checkpoint."""
    if dice.random() < 0.5:
        run = halted(folder, dice)
        what = _harmed(run.workdir, dice)
        kept = (run.workdir / "checkpoints",)
        return asked(folder, what, *run.words, same=run.same, kept=kept)
    whole = dice.choice([teacher_run(), student_run()])
    workdir, out = copied(whole, folder / "run"), folder / "drawn.npz"
    what = _harmed(workdir, dice)
    words = ("sample", f"--workdir={workdir}", "--num=2", f"--out={out}", "--checkpoint=4")
    expected = drawn(whole, "--checkpoint=4")
    return asked(folder, what, *words, same=lambda: out.read_bytes() == expected, kept=(workdir,))


def _harmed(workdir: Path, dice: random.Random) -> str:
    step = workdir / "checkpoints" / "4"
    if not step.is_dir():  # a distillation that was stopped at 2
        step = workdir / "checkpoints" / "2"
    files = sorted(f for f in step.rglob("*") if f.is_file())
    # Half of them by their size: most files are small notes that Orbax never reads.
    sizes = [f.stat().st_size for f in files] if dice.random() < 0.5 else None
    return damage(dice.choices(files, sizes)[0], dice)
