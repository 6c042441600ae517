"""The order of the test files: those that take longest first, or one worker waits for another."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LONGEST = (
    "test_configs.py",
    "distill/test_sharded_cycle.py",
    "commands/test_processes.py",
    "training/test_text_training.py",
    "test_notebook.py",
    "commands/test_buckets.py",
    "training/test_student.py",
    "commands/test_resume.py",
    "conformance/test_sd_turns.py",
    "distill/test_cycle.py",
    "commands/test_ablate.py",
    "conformance/test_sd_losses.py",
    "commands/test_flow_client.py",
    "distill/test_toy_distributions.py",
    "test_launch.py",
    "benchmark_scripts/test_weak_scaling.py",
    "conformance/test_diffusers_models.py",
    "evaluate/test_evaluate.py",
    "families/edm/test_unet.py",
    "training/test_teacher.py",
    "commands/test_kill.py",
    "commands/test_convert.py",
    "distill/objectives/test_contract.py",
    "recipe/test_lora.py",
    "commands/test_main.py",
    "networks/test_conv.py",
    "families/test_flow_families.py",
    "conformance/test_dmd2_edm_trajectory.py",
    "commands/test_demo.py",
    "distill/test_adapter_cycle.py",
    "plan/test_plan.py",
    "conformance/test_edm_networks.py",
    "training/test_pairs.py",
    "commands/test_ablation_rows.py",
    "test_readme.py",
    "families/stable_diffusion/test_family.py",
    "runtime/test_distributed.py",
    "test_wheel.py",
    "commands/test_new.py",
    "commands/test_plan.py",
    "example_scripts/test_examples.py",
    "families/published/test_model.py",
)
"""Files below tests/, by the time they took on 2026-11-30; the rest keeps pytest's order."""


def longest_first(items: list[T], path: Callable[[T], Path]) -> list[T]:
    """Return tests in the order of their files in `LONGEST`, then the others.

    Args:
      items: the tests, those of a file together.
      path: returns a test's file.
    """
    tests = Path(__file__).resolve().parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    return sorted(items, key=lambda item: place.get(path(item), len(place)))
