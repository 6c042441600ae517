"""The order of the test files: those that take longest first, or one worker waits for another."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LONGEST = (
    "test_configs.py",
    "commands/test_processes.py",
    "distill/test_sharded_cycle.py",
    "distill/test_cycle.py",
    "training/test_text_training.py",
    "training/test_student.py",
    "plan/test_plan.py",
    "conformance/test_sd_turns.py",
    "commands/test_resume.py",
    "conformance/test_sd_losses.py",
    "distill/test_toy_distributions.py",
    "commands/test_buckets.py",
    "test_notebook.py",
    "commands/test_ablate.py",
    "commands/test_kill.py",
    "families/edm/test_unet.py",
    "distill/objectives/test_contract.py",
    "benchmark_scripts/test_weak_scaling.py",
    "distill/test_adapter_cycle.py",
    "training/test_teacher.py",
    "networks/test_conv.py",
    "evaluate/test_evaluate.py",
    "families/stable_diffusion/test_unet.py",
    "conformance/test_edm_networks.py",
    "test_launch.py",
    "commands/serve/test_page.py",
    "conformance/test_diffusers_models.py",
    "commands/test_new.py",
    "recipe/test_lora.py",
    "example_scripts/test_examples.py",
    "commands/test_convert.py",
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
