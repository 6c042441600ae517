"""Runs of the real command that are killed at random moments of their lives, and go on.

The suite sends four SIGKILLs and two SIGTERMs to a teacher's training. For 25 and 6, to a
distillation too:

    DMD2_KILLS=25 python -m pytest -s tests/commands/test_kill.py
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.runtime.integrity import read_manifest, step_folders
from tests.compiling import flags
from tests.tiny import RECIPE, cache_folder, dmd2, results, scratch

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("DMD2_KILLS", "0"))
COMMANDS = ("train-teacher", "distill") if KILLS else ("train-teacher",)
OFTEN = (
    "--config.teacher.steps=12",
    "--config.distill.cycles=12",
    "--config.log.checkpoint_every=1",
    "--config.log.grid_every=8",
    "--config.log.teacher_grid_every=8",
)
LIMIT = 600.0  # seconds, for a process that should end by itself


class Victim:
    """One command that writes often, each time in a process of its own.

    Attributes:
      life: about how many seconds one takes that finds its programs compiled.
      expected: the results of one that was left in peace.
    """

    def __init__(self, command: str, folder: Path) -> None:
        self.words = [command, f"--config={RECIPE}", *OFTEN]
        if command == "distill":
            teacher = folder / "teacher"
            start = ["train-teacher", f"--config={RECIPE}", f"--workdir={teacher}"]
            assert dmd2(*start) == 0
            self.words.append(f"--config.teacher.weights={teacher}")
        # Once in peace, which also fills the cache of compiled programs.
        begun = time.monotonic()
        self.finish(folder / "peace")
        (first, *_) = read_metrics(folder / "peace" / "speed.jsonl")
        (compiling,) = (first[name] for name in first if name.startswith("first_"))
        self.life = time.monotonic() - begun - 0.7 * compiling
        self.expected = results(folder / "peace")

    def start(self, workdir: Path) -> subprocess.Popen:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache_folder()),
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": flags(),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "dmd2_jax.commands.main", *self.words, f"--workdir={workdir}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, workdir: Path) -> str:
        """Run to the end and return what was said on the way."""
        process = self.start(workdir)
        _, said = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, said
        return said

    def stop(self, workdir: Path, number: signal.Signals, after: float) -> tuple[int, str]:
        """Send a signal after some seconds; return the exit code and what was said."""
        process = self.start(workdir)
        try:
            _, said = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            _, said = process.communicate(timeout=LIMIT)
        return process.returncode, said


def good_steps(workdir: Path) -> list[int]:
    """Return the finished checkpoints; raise if one of them is damaged."""
    folders = step_folders(workdir / "checkpoints")
    for folder in folders.values():
        read_manifest(folder)
    return list(folders)


def torment(victim: Victim, signals: list[signal.Signals], dice: random.Random) -> list[str]:
    """Kill a run again and again, and compare each that ends with one that was left in peace.

    Returns:
      For each kill, the signal and the newest checkpoint that was there after it.
    """
    kills: list[str] = []
    while len(kills) < len(signals):
        workdir, before, ended = scratch() / "run", [], False
        while len(kills) < len(signals) and not ended:
            number = signals[len(kills)]
            code, said = victim.stop(workdir, number, dice.uniform(0.0, victim.life))
            assert "damaged" not in said
            after = good_steps(workdir)
            # What was there before still is, or newer ones have taken its place.
            assert after[:1] >= before[:1]
            assert len(after) >= len(before)
            before, ended = after, code == 0 and "stopped by" not in said
            if not ended:
                # SIGTERM is handled as soon as the command has imported what handles it.
                assert code == -number or (number == signal.SIGTERM and code == 0), said
                kills.append(f"{number.name} {after[0] if after else '-'}")
        if ended:
            victim.life *= 0.9  # the machine has become faster than it was: aim earlier
        else:
            assert "damaged" not in victim.finish(workdir)
        assert results(workdir) == victim.expected
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_run_killed_at_any_moment_ends_as_if_it_had_not_been(command: str) -> None:
    dice = random.Random(f"{command} {KILLS}")
    signals = [signal.SIGKILL] * (KILLS or 4) + [signal.SIGTERM] * (6 if KILLS else 2)
    dice.shuffle(signals)
    begun = time.monotonic()
    kills = torment(Victim(command, scratch()), signals, dice)
    print(f"{command}: {time.monotonic() - begun:.0f} s; newest checkpoint after each: {kills}")
