"""The order of the test files: those that take longest first, or one worker waits for another."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LONGEST = (
    "test_configs.py",
    "commands/test_processes.py",
    "distill/test_cycle.py",
    "distill/test_sharded_cycle.py",
    "training/test_text_training.py",
    "plan/test_plan.py",
    "conformance/test_sd_turns.py",
    "training/test_student.py",
    "commands/test_resume.py",
    "commands/test_ablate.py",
    "distill/test_toy_distributions.py",
    "benchmark_scripts/test_weak_scaling.py",
    "conformance/test_sd_losses.py",
    "commands/test_kill.py",
    "test_notebook.py",
    "commands/test_demo.py",
    "test_readme.py",
)
"""Files below tests/, by the time they took on 2026-11-29; the rest keeps pytest's order."""


def longest_first(items: list[T], path: Callable[[T], Path]) -> list[T]:
    """Return tests in the order of their files in `LONGEST`, then the others.

    Args:
      items: the tests, those of a file together.
      path: returns a test's file.
    """
    tests = Path(__file__).resolve().parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    return sorted(items, key=lambda item: place.get(path(item), len(place)))
