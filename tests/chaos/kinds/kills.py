"""Runs that are killed, or asked to stop, at any moment of their lives."""

import functools
import random
import signal
from pathlib import Path

from tests.chaos.engine import BAD, HARMLESS, LOST, NOTICED, TRACEBACK, Try, command
from tests.commands.test_kill import Victim, good_steps
from tests.tiny import results, scratch

NAME = "SIGKILL, SIGTERM, SIGHUP at any moment"
TRIES = 10
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


@functools.cache
def _victim(name: str) -> Victim:
    return Victim(name, scratch())


def attempt(dice: random.Random, folder: Path) -> Try:
    """Stop a run once or twice, then take it to its end."""
    name = dice.choice(["train-teacher", "train-teacher", "distill"])
    victim, workdir = _victim(name), folder / "run"
    told, before = [], list[int]()
    for _ in range(dice.randint(1, 2)):
        number = dice.choice(_SIGNALS)
        code, said = victim.stop(workdir, number, dice.uniform(0.0, victim.life))
        told.append(f"{number.name} {code}")
        if "Traceback" in said or code not in (0, -number):
            return Try(f"{name}, {told}", TRACEBACK, said)
        try:
            after = good_steps(workdir)
        except ValueError as error:
            return Try(f"{name}, {told}", LOST, str(error))
        if after[:1] < before[:1] or len(after) < len(before):
            return Try(f"{name}, {told}", LOST, f"checkpoints {before}, then {after}")
        before = after
    said = command(*victim.words, f"--workdir={workdir}")
    ended = said.code == 0 and results(workdir) == victim.expected
    it = NOTICED if "without letting go" in said.text else HARMLESS
    return Try(f"{name}, {told}", it if ended else BAD[0], said.text)
