"""Teacher pairs damaged, swapped, zeros, not numbers."""

import functools
import random
from pathlib import Path

import numpy as np

from tests.chaos.damages import damage
from tests.chaos.engine import Try, asked, fine
from tests.chaos.runs import copied
from tests.tiny import RECIPE, contents, distill_words, scratch, teacher_run, unnamed

NAME = "teacher pairs damaged, swapped, zeros, NaN"
TRIES = 40
_REGRESSION = (
    "--config.distill.regression_weight=1.0",
    "--config.distill.dm_weight=None",
    "--config.distill.gan_generator_weight=None",
    "--config.distill.gan_critic_weight=None",
    "--config.distill.cycles=1",
    "--config.evaluate.batch_size=8",
)


def _words(out: Path) -> tuple[str, ...]:
    weights = f"--config.teacher.weights={teacher_run()}"
    few = "--config.evaluate.batch_size=8"  # three files of each part
    return ("make-pairs", f"--config={RECIPE}", weights, f"--out={out}", few)


@functools.cache
def _whole() -> Path:
    out = scratch() / "pairs"
    fine(*_words(out))
    return out


@functools.cache
def _student() -> bytes:
    run = scratch() / "run"
    fine(*distill_words(run, *_REGRESSION, f"--config.distill.pairs={_whole()}"))
    return unnamed((run / "student.safetensors").read_bytes())


def _swapped(folder: Path, dice: random.Random) -> str:
    one, other = dice.sample(sorted(folder.glob("*.npy")), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return f"{one.name} and {other.name} swapped"


def _constant(folder: Path, dice: random.Random) -> str:
    file = dice.choice(sorted(folder.glob("*.npy")))
    value = dice.choice([0.0, np.nan, np.inf, 1.0])
    np.save(file, np.full_like(np.load(file), value))
    return f"{file.name} all {value}"


def _rows_swapped(folder: Path, dice: random.Random) -> str:
    file = dice.choice(sorted(folder.glob("*.npy")))
    np.save(file, np.load(file)[::-1])
    return f"{file.name} in another order"


def _damaged(folder: Path, dice: random.Random) -> str:
    return damage(dice.choice(sorted(folder.iterdir())), dice)


def attempt(dice: random.Random, folder: Path) -> Try:
    """Harm pairs, then have them made again, or a run trained on them."""
    pairs = copied(_whole(), folder / "pairs")
    what = dice.choice([_damaged, _damaged, _swapped, _constant, _rows_swapped])(pairs, dice)
    if dice.random() < 0.8:
        whole = contents(_whole())
        same = lambda: contents(pairs) == whole  # noqa: E731
        return asked(folder, what, *_words(pairs), same=same, kept=(pairs,))
    run = folder / "run"
    own = dice.random() < 0.5
    if own:  # the run's own pairs, made again where they are damaged
        run.mkdir()
        pairs.rename(run / "teacher_pairs")
    more = () if own else (f"--config.distill.pairs={pairs}",)
    expected = _student()
    same = lambda: unnamed((run / "student.safetensors").read_bytes()) == expected  # noqa: E731
    kept = () if own else (pairs,)
    return asked(folder, what, *distill_words(run, *_REGRESSION, *more), same=same, kept=kept)
