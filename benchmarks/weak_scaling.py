"""Weak scaling of the cycle from 1 to 8 devices, of what its compiled programs say.

    python -m benchmarks.weak_scaling
    python -m benchmarks.weak_scaling --per_device=64 --devices=1,8

The batch of each device stays the same. FLOPs and bytes of one device should, too, and the bytes of
the collectives should be what docs/scaling.md says. Nothing is timed: the devices are virtual, on
one CPU.
"""

import argparse
import datetime
import os
import platform
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from dmd2_jax.config import defaults
from dmd2_jax.plan.cycle import open_cycle
from dmd2_jax.plan.jaxpr_flops import jaxpr_flops
from dmd2_jax.plan.program_costs import read_program
from dmd2_jax.recipe.distillation import Distillation, trace
from dmd2_jax.recipe.tables import aligned

LAYOUTS = ("data", "fsdp")


class Row(NamedTuple):
    """One compiled cycle.

    Attributes:
      layout: the mesh axis that all devices are on.
      devices: how many.
      flops: of the traced cycle, its share of one device.
      compiled_flops: of one device's program, as the compiler counts them: loops once.
      num_bytes: read and written by one device.
      gathered, reduced: result bytes of all-gathers, and of all-reduces and reduce-scatters.
      gathered_expected, reduced_expected: the same from the shapes of the weights alone.
      kinds: of collectives that the program has.
    """

    layout: str
    devices: int
    flops: float
    compiled_flops: float
    num_bytes: int
    gathered: int
    gathered_expected: int
    reduced: int
    reduced_expected: int
    kinds: frozenset[str]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--per_device", type=int, default=40, help="samples of the batch of each")
    parser.add_argument("--devices", default="1,2,4,8", help="numbers of devices")
    arguments = parser.parse_args()
    counts = [int(word) for word in arguments.devices.split(",")]
    flag = f"--xla_force_host_platform_device_count={max(counts)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    rows = [
        measure(layout, n, arguments.per_device)
        for layout in LAYOUTS
        for n in counts
        if n > 1 or layout == LAYOUTS[0]
    ]
    today = datetime.date.today()
    print(f"{today}, {platform.machine()}, jax {jax.__version__}, {arguments.per_device} a device")
    print(table(rows))


def recipe(layout: str, devices: int, per_device: int) -> ConfigDict:
    """Return a small U-Net's recipe on a mesh of `devices` along one axis."""
    config = defaults.get_config()
    config.model.model_channels = 16
    config.model.channel_mult = (1,)
    config.model.attention_resolutions = ()
    config.distill.critic_turns = 2
    config.distill.gan_head_channels = 8
    config.distill.batch_size = devices * per_device
    config.mesh.data = 1
    config.mesh[layout] = devices
    return config


def measure(layout: str, devices: int, per_device: int) -> Row:
    """Compile the cycle and count.

    Args:
      layout: "data" or "fsdp".
      devices: how many virtual devices.
      per_device: samples of the batch on each.
    """
    cycle = open_cycle(recipe(layout, devices, per_device), jax.devices()[:devices])
    traced = trace(cycle)
    options = {"xla_backend_optimization_level": 0}  # the code is not run
    compiled = traced.lower().compile(compiler_options=options)
    costs = read_program(compiled.as_text())
    moved = {kind: it.num_bytes for kind, it in costs.collectives.items()}
    gathered, reduced = expected_bytes(cycle, devices)
    return Row(
        layout,
        devices,
        jaxpr_flops(traced.jaxpr) / devices,
        compiled.cost_analysis()["flops"],
        costs.num_bytes,
        moved.get("all-gather", 0),
        gathered,
        moved.get("all-reduce", 0) + moved.get("reduce-scatter", 0),
        reduced,
        frozenset(moved),
    )


def expected_bytes(cycle: Distillation, devices: int) -> tuple[int, int]:
    """Return what docs/scaling.md says is gathered and reduced, the sums of metrics left out.

    Args:
      cycle: of a one-step student with a GAN.
      devices: how many there are.
    """
    if devices == 1:
        return 0, 0
    players, places = cycle.state, cycle.shardings.state
    turns = cycle.batch.fake_cond.shape[0]
    network, head = _total(players.generator.params), _total(players.discriminator.params)
    encoder = _total(players.critic.params, ("enc_", "map_"))
    split = _split(players.generator.params, places.generator.params)
    split_head = _split(players.discriminator.params, places.discriminator.params)
    gathered = 4 * split + split_head + turns * (split + split_head)
    gathered += 4 * cycle.batch.fake_cond.shape[1] * (1 + 2 * turns)  # the logits, as metrics
    return gathered, network + turns * (network + encoder + head)


def table(rows: list[Row]) -> str:
    """Lay the rows out for people."""
    head = (
        "layout, devices",
        "MFLOPs",
        "compiled",
        "MB",
        "gathered",
        "formula",
        "reduced",
        "formula",
    )
    lines: list[tuple[object, ...]] = [head]
    for row in rows:
        moved = (row.gathered, row.gathered_expected, row.reduced, row.reduced_expected)
        lines.append(
            (
                f"{row.layout}={row.devices}",
                f"{row.flops / 1e6:,.1f}",
                f"{row.compiled_flops / 1e6:,.1f}",
                f"{row.num_bytes / 1e6:,.2f}",
                *(f"{value:,}" for value in moved),
            )
        )
    return aligned(lines)


def _total(params: Any, words: tuple[str, ...] = ("",)) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(
        4 * int(np.prod(leaf.shape))
        for path, leaf in leaves
        if any(word in jax.tree_util.keystr(path) for word in words)
    )


def _split(params: Any, places: Any) -> int:
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(places), strict=True)
    return sum(4 * int(np.prod(x.shape)) for x, at in pairs if not at.is_fully_replicated)


if __name__ == "__main__":
    main()
