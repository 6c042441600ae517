"""The accelerators that can be planned for without having one, and their published peaks."""

import difflib
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax

__all__ = ["CHIPS", "Chip", "topology"]


class Chip(NamedTuple):
    """One accelerator chip's published peak figures.

    Attributes:
      name: for people.
      flops: bfloat16 FLOP/s.
      memory: bytes of high-bandwidth memory.
      memory_bandwidth: bytes/s.
      link_bandwidth: bytes/s that all its links to other chips send together.
      shapes: slices that are sold, as the topology's sizes.
    """

    name: str
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    shapes: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

# As Google Cloud's TPU documentation states them; checked there in 2026-11: v5e and v6e. It gives
# links in both directions together, of which this is half.
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 32e9, 1228e9, 300e9, _CUBE),
    "v5e": Chip("TPU v5e", 197e12, 16e9, 819e9, 200e9, _FLAT),
    "v5p": Chip("TPU v5p", 459e12, 95e9, 2765e9, 600e9, _CUBE),
    "v6e": Chip("TPU v6e", 918e12, 32e9, 1638e9, 400e9, _FLAT),
    "tpu7x": Chip("TPU7x", 2307e12, 192e9, 7370e9, 600e9, _CUBE),
}
"""Name in a topology, such as "v5p" of "v5p:4x4x4" -> the chip."""


def topology(name: str) -> tuple[Chip, Sequence[jax.Device]]:
    """Return the chip and the devices of a TPU slice that need not be there.

    Args:
      name: for example "v5e:4x4" or "v5p:4x4x4".

    Returns:
      The chip, and devices that programs can be compiled for but not run on.

    Raises:
      ValueError: if there is no such topology (the nearest is named), or libtpu is not installed.
    """
    known = [f"{kind}:{shape}" for kind, chip in CHIPS.items() for shape in chip.shapes]
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
        raise ValueError(
            f"--topology={name}, expected CHIP:SHAPE with a chip of {sorted(CHIPS)}; did you mean "
            f"one of {nearest}? `local` is this machine."
        )
    # libtpu asks a metadata server where it runs unless it is told.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:
        if "libtpu" in str(error).lower() and "topology" not in str(error).lower():
            raise ValueError(
                f"--topology={name} needs TPU's compiler, which is not installed; "
                'install it with: pip install -e ".[plan]" (0.6 GB; no TPU is needed).'
            ) from error
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        raise ValueError(
            f"--topology={name} is refused by TPU's compiler ({str(error).splitlines()[0]}), "
            f"expected a slice that exists; did you mean one of {nearest}?"
        ) from error
    return CHIPS[kind], found.devices
