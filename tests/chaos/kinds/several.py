"""One run of two processes (jax.distributed): one of them killed, or its folder taken twice."""

import functools
import random
import signal
import time
from pathlib import Path

from dmd2_jax.runtime.integrity import step_folders
from tests.chaos.engine import BAD, HARMLESS, HUNG, LOST, REFUSED, TRACEBACK, Try, command
from tests.commands.test_kill import good_steps
from tests.commands.test_processes import MESH, finish, start
from tests.tiny import RECIPE, results, scratch

NAME = "two processes of one run (jax.distributed)"
TRIES = 2
_STEPS = ("--config.teacher.steps=60", "--config.log.checkpoint_every=4")


def _words(workdir: Path) -> tuple[str, ...]:
    more = (*MESH, *_STEPS, "--config.log.teacher_grid_every=100000")
    return ("train-teacher", f"--config={RECIPE}", f"--workdir={workdir}", *more)


@functools.cache
def _peace() -> dict[str, bytes]:
    workdir = scratch() / "run"
    ended = finish(start(*_words(workdir)))
    assert [code for code, _, _ in ended] == [0, 0], ended
    return results(workdir)


def attempt(dice: random.Random, folder: Path) -> Try:
    """Disturb a run of two processes, then let the same two finish it."""
    expected, workdir = _peace(), folder / "run"
    processes = start(*_words(workdir))
    for _ in range(6000):
        if step_folders(workdir / "checkpoints") or processes[0].poll() is not None:
            break
        time.sleep(0.02)
    time.sleep(dice.uniform(0, 0.5))
    way = dice.choice(["a second process", "SIGKILL of the first", "SIGKILL of the second"])
    if way == "a second process":
        said = command("train-teacher", f"--config={RECIPE}", f"--workdir={workdir}")
        if said.code != 2 and processes[0].poll() is None:
            return Try(way, BAD[0], said.text)
        ended = finish(processes)
        done = results(workdir) == expected and [code for code, _, _ in ended] == [0, 0]
        return Try(way, REFUSED if done else LOST, f"{said.text}\n{ended}")
    processes[way.endswith("second")].send_signal(signal.SIGKILL)
    ended = finish(processes)
    told = "\n".join(errors for _, _, errors in ended)
    if "Traceback" in told:
        return Try(way, TRACEBACK, told)
    try:
        steps = good_steps(workdir)
    except ValueError as error:
        return Try(way, LOST, str(error))
    ended = finish(start(*_words(workdir)))
    if [code for code, _, _ in ended] != [0, 0]:
        return Try(f"{way} after {steps}", HUNG, f"{told}\n{ended}")
    it = HARMLESS if results(workdir) == expected else LOST
    return Try(f"{way} after {steps}", it, f"{told}\n{ended}")
