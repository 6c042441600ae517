"""The order of the test files: those that take longest first, or one worker waits for another."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LONGEST = (
    "test_configs.py",
    "distill/test_sharded_cycle.py",
    "commands/test_flow_client.py",
    "commands/test_buckets.py",
    "conformance/test_sd_turns.py",
    "test_notebook.py",
    "training/test_text_training.py",
    "commands/test_processes.py",
    "commands/test_resume.py",
    "distill/test_cycle.py",
    "conformance/test_sd_losses.py",
    "training/test_student.py",
    "commands/test_shapes_client.py",
    "distill/test_toy_distributions.py",
    "test_docs_commands.py",
    "commands/test_ablate.py",
    "plan/test_plan.py",
    "families/edm/test_unet.py",
    "benchmark_scripts/test_weak_scaling.py",
    "distill/objectives/test_contract.py",
    "training/test_teacher.py",
    "commands/test_kill.py",
    "training/test_guidance.py",
    "commands/test_cache_classes.py",
    "commands/test_convert.py",
    "networks/test_conv.py",
    "distill/test_adapter_cycle.py",
    "recipe/test_lora.py",
    "commands/test_ablation_rows.py",
    "evaluate/test_evaluate.py",
    "conformance/test_diffusers_models.py",
    "families/stable_diffusion/test_family.py",
    "families/test_flow_families.py",
    "networks/test_sd_transformer.py",
    "training/test_menu.py",
    "conformance/test_dmd2_edm_trajectory.py",
    "recipe/test_guidance.py",
    "commands/test_new.py",
    "conformance/test_edm_networks.py",
    "test_readme.py",
    "families/published/test_model.py",
    "runtime/test_distributed.py",
    "families/edm/test_family.py",
    "example_scripts/test_examples.py",
    "test_launch.py",
    "commands/test_main.py",
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
