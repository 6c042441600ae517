"""Settings that are no numbers, schedules beyond their end, averages that share a name."""

import functools
import random
from pathlib import Path

from ml_collections import ConfigDict

from tests.chaos.engine import Try, asked
from tests.tiny import RECIPE, distill_words, get_config

NAME = "settings: NaN, schedules, averages"
TRIES = 60
_OF_TEACHERS = ("teacher", "model", "data")
_NO_NUMBERS = ("nan", "inf", "-inf", "1e999")


@functools.cache
def _numbers() -> tuple[str, ...]:
    """Return the keys of a config whose values are real numbers, or may be."""
    found = []

    def look(group: ConfigDict, prefix: str) -> None:
        for key, value in group.items():
            if isinstance(value, ConfigDict):
                look(value, f"{prefix}{key}.")
            elif isinstance(value, float) or (
                value is None and key.endswith(("weight", "guidance"))
            ):
                found.append(prefix + key)

    look(get_config(), "")
    return tuple(sorted(found))


def attempt(dice: random.Random, folder: Path) -> Try:
    """Set one value that stands for nothing, and have it checked."""
    return dice.choice([_not_a_number, _not_a_number, _averages, _times, _levels])(dice, folder)


def _checked(folder: Path, what: str, *words: object) -> Try:
    return asked(folder, what, *words, same=lambda: False, kept=())


def _dry(folder: Path, *more: str) -> tuple[str, ...]:
    return (*distill_words(folder / "run"), *more, "--dry_run")


def _not_a_number(dice: random.Random, folder: Path) -> Try:
    key, value = dice.choice(_numbers()), dice.choice(_NO_NUMBERS)
    change = f"--config.{key}={value}"
    if key.split(".")[0] in _OF_TEACHERS:
        words = ("train-teacher", f"--config={RECIPE}", f"--workdir={folder / 'run'}", change)
        return _checked(folder, change, *words, "--dry_run")
    return _checked(folder, change, *_dry(folder, change))


def _averages(dice: random.Random, folder: Path) -> Try:
    one = dice.choice([0.9, 0.999, 0.9999])
    other = dice.choice([one, one + 1e-9, 1.0, float("nan"), -0.1, 1.5])
    change = f"--config.optim.ema_decays={one},{other}"
    return _checked(folder, change, *_dry(folder, change))


def _times(dice: random.Random, folder: Path) -> Try:
    times = dice.choice(["nan", "80,nan", "inf", "20,80", "80,80", "0", "-1", "80,0", "80,-inf"])
    change = f"--config.distill.student_times={times}"
    return _checked(folder, change, *_dry(folder, change))


def _levels(dice: random.Random, folder: Path) -> Try:
    key = dice.choice(["dm_range", "gan_range"])
    levels = dice.choice(["nan,1", "0,nan", "0.9,0.1", "-1,0.5", "0,2", "0.5,0.5", "inf,inf", "0"])
    change = f"--config.distill.{key}={levels}"
    return _checked(folder, change, *_dry(folder, change))
