"""Times as a config writes them: a student's, and distributions such as logit_normal:0:1."""

import math
from collections.abc import Mapping
from typing import Any

from dmd2_jax.config.refused import Refused

__all__ = ["EXPECTED", "UNIFORM", "number_of_steps", "parsed_times"]

UNIFORM = "uniform"
EXPECTED = (
    "uniform, logit_normal:MEAN:STD, shifted:S or polynomial:P with finite numbers, "
    "STD, S and P positive"
)
_POSITIVE = {UNIFORM: (), "logit_normal": (False, True), "shifted": (True,), "polynomial": (True,)}
"""The distributions, and which of their numbers have to be positive."""


def number_of_steps(distill: Mapping[str, Any]) -> int:
    """Return how many steps a student has, whose times or whose number are given.

    Args:
      distill: `config.distill` of a run, also of an older release.
    """
    return distill.get("student_steps") or len(distill["student_times"])


def parsed_times(text: str) -> tuple[str, tuple[float, ...]]:
    """Read a distribution of noise levels.

    Args:
      text: its name, and its numbers behind colons: "uniform", "shifted:3".

    Returns:
      (name, numbers).

    Raises:
      Refused: if it is none.
    """
    try:
        name, *words = text.split(":")
        numbers = tuple(float(word) for word in words)
        signs = _POSITIVE[name]
        fits = len(numbers) == len(signs) and all(
            math.isfinite(number) and (number > 0 or not sign)
            for number, sign in zip(numbers, signs, strict=True)
        )
    except (AttributeError, KeyError, ValueError):
        fits = False
    if not fits:
        raise Refused(f"times={text!r}, expected {EXPECTED}; correct it.")
    return name, numbers
