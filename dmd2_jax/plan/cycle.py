"""A recipe's cycle, traced for a machine that need not be there, without its data and weights."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax.distill import (
    CycleBatch,
    CycleShardings,
    DistillConfig,
    Pairs,
    Samples,
    TrainState,
    make_cycle,
)
from dmd2_jax.plan.chips import Chip, chip_of, num_chips, topology
from dmd2_jax.recipe.distillation import build_players, distill_config, initial_state
from dmd2_jax.recipe.open import Family, build_family, check
from dmd2_jax.recipe.placement import (
    check_player_rules,
    cycle_shardings,
    mesh_rules,
    spread_players,
)
from dmd2_jax.runtime.sharding import check_batch_size, make_mesh
from dmd2_jax.typing import PyTree

__all__ = ["LOCAL", "TracedCycle", "batch_shapes", "machine", "trace_cycle"]

LOCAL = "local"
"""The topology that is this machine."""


def batch_shapes(config: ConfigDict, family: Family, settings: DistillConfig) -> CycleBatch:
    """Return the shapes of what a cycle of a recipe reads, without any data."""
    turns, b = settings.critic_turns, settings.batch_size

    def labels(*lead: int) -> Any:
        return family.cond_shapes(*lead)

    def images(*lead: int) -> Any:
        return jax.ShapeDtypeStruct((*lead, *family.image_shape), np.float32)

    real = Samples(images(turns, b), labels(turns, b)) if settings.needs_real else None
    pairs = None
    if settings.needs_pairs:
        pairs = Pairs(images(b), images(b), labels(b))
    return CycleBatch(real, labels(turns, b), pairs)


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


class TracedCycle(NamedTuple):
    """A recipe's cycle, traced for a mesh and not compiled, and the shapes of what it takes."""

    traced: Any
    mesh: Mesh
    state: TrainState
    teacher: PyTree
    batch: CycleBatch
    shardings: CycleShardings


def trace_cycle(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> TracedCycle:
    """Trace a recipe's cycle without its data and weights.

    Args:
      config: the whole config.
      devices: to make the mesh of; None: this machine's.

    Raises:
      ValueError: if the config is refused or does not fit the devices.
    """
    check(config)
    mesh = make_mesh(config.mesh, devices)
    family = build_family(config)
    settings, players = distill_config(config, family), build_players(config, family)
    check_batch_size(settings.batch_size, mesh, settings.microbatches)
    teacher, key = family.param_shapes(), jax.random.key(0)
    state = jax.eval_shape(lambda p: initial_state(players, settings, family, p, key), teacher)
    rules = mesh_rules(config.mesh)
    check_player_rules(rules, teacher, state, mesh)
    batch = batch_shapes(config, family, settings)
    shardings = cycle_shardings(state, teacher, batch, mesh, rules, config.mesh.offload)
    cycle: Any = make_cycle(spread_players(players, mesh, rules), settings, shardings=shardings)
    placed = (_placed(state, shardings.state), _placed(teacher, shardings.teacher))
    traced = cycle.trace(*placed, batch, jax.eval_shape(lambda: key))
    return TracedCycle(traced, mesh, state, teacher, batch, shardings)


def _placed(shapes: PyTree, places: PyTree) -> PyTree:
    """Return shapes whose types say in which memory they lie."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )
