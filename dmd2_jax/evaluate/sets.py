"""The figures of metrics.json, set by set."""

from collections.abc import Mapping
from typing import Any

__all__ = ["by_set"]


def by_set(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return name of each measured set -> its figures, without its name in front.

    student_ema_0.9_fid is a figure of student_ema_0.9, and none of student.

    Args:
      metrics: what metrics.json holds; every set has a NAME_num_samples.
    """
    names = [key.removesuffix("_num_samples") for key in metrics if key.endswith("_num_samples")]
    found = {}
    for name in names:
        longer = tuple(f"{other}_" for other in names if other.startswith(f"{name}_"))
        found[name] = {
            key.removeprefix(f"{name}_"): value
            for key, value in metrics.items()
            if key.startswith(f"{name}_") and not key.startswith(longer)
        }
    return found
