"""A recipe's cycle for a machine that need not be there, without its data and weights."""

import math
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from dmd2_jax.plan.chips import Chip, chip_of, num_chips, topology
from dmd2_jax.recipe.distillation import Distillation, open_distillation
from dmd2_jax.recipe.open import build_family, check
from dmd2_jax.runtime.sharding import make_mesh

__all__ = ["LOCAL", "machine", "open_cycle"]

LOCAL = "local"
"""The topology that is this machine."""


def machine(name: str) -> tuple[Chip | None, Sequence[jax.Device], int]:
    """Return (chip, devices, number of chips) of "local" or a TPU slice.

    Args:
      name: "local", whose chip is None where no peaks are published (a CPU), or a slice.

    Raises:
      ValueError: if there is no such slice, or libtpu is not installed.
    """
    if name != LOCAL:
        chip, devices = topology(name)
        return chip, devices, math.prod(int(size) for size in name.partition(":")[2].split("x"))
    devices = jax.devices()
    return chip_of(devices[0].device_kind), devices, num_chips(devices)


def open_cycle(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Distillation:
    """Set up a recipe's distillation without opening its data and weights.

    Args:
      config: the whole config.
      devices: to make the mesh of; None: this machine's.

    Raises:
      ValueError: if the config is refused or does not fit the devices.
    """
    check(config)
    return open_distillation(config, build_family(config), make_mesh(config.mesh, devices))
