"""Which of several processes this one is, as flags or the environment say; needs no JAX."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from dmd2_jax.config.refused import Refused

__all__ = ["VARIABLES", "JoinError", "Place", "find_place"]

VARIABLES = ("DMD2_COORDINATOR", "DMD2_NUM_PROCESSES", "DMD2_PROCESS_ID")
"""The environment's names of `Place`'s fields."""


class JoinError(Refused):
    """The processes of a run do not fit each other."""


class Place(NamedTuple):
    """One process's place among those of a run; without a coordinator JAX finds all three.

    Attributes:
      coordinator: HOST:PORT that process 0 listens on, and that all can reach.
      num_processes: how many there are.
      process_id: 0 .. num_processes - 1, each once.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def find_place(given: Place, environment: Mapping[str, str] = os.environ) -> Place | None:
    """Return this process's place, from flags or else from the environment.

    Args:
      given: the flags, as numbers or text; what is None is looked up.
      environment: `DMD2_COORDINATOR`, `DMD2_NUM_PROCESSES` and `DMD2_PROCESS_ID`, or
        `DMD2_DISTRIBUTED=1`, with which JAX asks SLURM, the TPU VM or Kubernetes.

    Returns:
      The place; None where this process is alone.

    Raises:
      JoinError: if only a part is given, or the numbers do not fit each other.
    """
    values = [
        environment.get(name) or None if flag is None else str(flag)
        for name, flag in zip(VARIABLES, given, strict=True)
    ]
    text = ", ".join(f"{name}={value}" for name, value in zip(VARIABLES, values, strict=True))
    if not any(values):
        automatic = environment.get("DMD2_DISTRIBUTED", "0")
        if automatic not in ("", "0", "1"):
            raise JoinError(f"DMD2_DISTRIBUTED={automatic}, expected 0 or 1; correct it.")
        return Place() if automatic == "1" else None
    coordinator, count, number = values
    if not (coordinator and count and number):
        raise JoinError(
            f"got {text}, expected all three or none; give the rest, or DMD2_DISTRIBUTED=1 alone "
            f"where SLURM, a TPU VM or Kubernetes says who is who."
        )
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        raise JoinError(
            f"got {text}, expected whole numbers with 0 <= process id < number of processes; "
            f"number the processes from 0."
        )
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdecimal():
        raise JoinError(f"got {text}, expected the coordinator as HOST:PORT; correct it.")
    return Place(coordinator, int(count), int(number))
