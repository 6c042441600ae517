"""A second process in a folder that another one writes to."""

import contextlib
import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.engine import LOST, SILENT, Try, asked, command, fine, outcome
from tests.chaos.runs import halted, teacher_words
from tests.commands.test_owner import WRITERS
from tests.tiny import RECIPE, contents, results, scratch, teacher_run

NAME = "a second process in a run or an output folder"
TRIES = 32
_ROOT = RECIPE.parents[1]
_OWNER = """
import sys, time
from dmd2_jax.runtime.owner import owned
with owned(sys.argv[1]):
    print("mine", flush=True)
    time.sleep(600)
"""
_LONG = ("--config.teacher.steps=40", "--config.log.checkpoint_every=4")


@contextlib.contextmanager
def _process(*words: object) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def attempt(dice: random.Random, folder: Path) -> Try:
    """Have a folder owned by a process, and start another command there."""
    draw = dice.random()
    if draw < 0.12:
        return _training(dice, folder)
    if draw < 0.25:
        return _noted(dice, folder)
    return _owned(dice, folder)


def _owned(dice: random.Random, folder: Path) -> Try:
    """The first process only holds the folder: a second one leaves it, or takes it at its end."""
    name = dice.choice(sorted(WRITERS))
    out = folder / "out"
    words = WRITERS[name](out)
    if name == "train-teacher" and dice.random() < 0.5:
        run = halted(folder, dice, students=0)
        out, words = run.workdir, list(run.words)
    if dice.random() < 0.3 and name in ("train-teacher", "make-pairs", "sample"):
        return _after_a_kill(name, folder, out, words)
    with _process("-c", _OWNER, out) as first:
        assert first.stdout is not None and first.stdout.readline() == "mine\n"
        it = asked(folder, name, *words, same=lambda: False, kept=(out,))
        assert first.poll() is None
    return it


def _noted(dice: random.Random, folder: Path) -> Try:
    """Nobody has the folder, and what is noted of its owner is damaged, or a stranger's."""
    run = halted(folder, dice, students=0)
    note = dice.choice(
        ["", "{", "[" * 100_000, '{"host": "\\u001b[2J"}', "\0" * 50, '{"beat": {}}']
    )
    (run.workdir / dice.choice([".owner", ".owner.json"])).write_text(note)
    it = asked(folder, f"a note {note[:20]!r}", *run.words, same=run.same, kept=())
    return it._replace(outcome=SILENT) if "\x1b" in it.said else it


def _after_a_kill(name: str, folder: Path, out: Path, words: list) -> Try:
    with _process("-c", _OWNER, out) as first:
        assert first.stdout is not None and first.stdout.readline() == "mine\n"
        first.send_signal(signal.SIGKILL)
        first.wait()
    said = command(*words)
    expected = _undisturbed(name) if name != "train-teacher" else results(teacher_run())
    got = results(out) if name == "train-teacher" else contents(out)
    it = outcome(said, lambda: got == expected, lambda: False)
    if it == "harmless":  # that the first one did not let go of it must be said
        it = SILENT
    return Try(f"{name}, the first one killed", it, said.text)


@functools.cache
def _undisturbed(name: str) -> dict[str, bytes]:
    out = scratch() / "out"
    fine(*WRITERS[name](out))
    return contents(out)


@functools.cache
def _alone() -> dict[str, bytes]:
    workdir = scratch() / "run"
    with _process("-m", "dmd2_jax.commands.main", *teacher_words(workdir, *_LONG)) as process:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    return results(workdir)


def _training(dice: random.Random, folder: Path) -> Try:
    """The first process trains: it must end as if nobody had come."""
    expected, workdir = _alone(), folder / "run"
    words = teacher_words(workdir, *_LONG)
    with _process("-m", "dmd2_jax.commands.main", *words) as first:
        for _ in range(6000):
            if (workdir / "config.json").exists() or first.poll() is not None:
                break
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 3))
        more = dice.choice([(), ("--config.seed=5",), ("--dry_run",)])
        said = command(*words, *more)
        ended = first.poll() is not None  # before the second one came: nothing was tried
        told, _ = first.communicate(timeout=600)
    it = outcome(said, lambda: ended, lambda: True)
    if first.returncode != 0 or results(workdir) != expected:
        it = LOST
    return Try(f"train-teacher while it trains {more}", it, f"{said.text}\n{told}")
