"""What a recipe's cycle costs on a machine that need not be there: `dmd2 plan`.

The real cycle is compiled, ahead of time, for the slice. Memory is the compiler's own figure;
FLOPs are counted in the traced program, bytes and collectives in the compiled one, with the body
of the scan over critic turns counted as often as it runs. Times are lower bounds from published
peaks: no program reaches all of them at once.
"""

import itertools
import math
import re
import sys
import time
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
from dmd2_jax.parallel import cycle_shardings, mesh_rules, spread_players
from dmd2_jax.recipe import Family, aligned, build_family, check
from dmd2_jax.runtime.chips import Chip, topology
from dmd2_jax.runtime.program_costs import Collective, jaxpr_flops, read_program
from dmd2_jax.runtime.sharding import check_batch_size, check_rules, make_mesh
from dmd2_jax.train_student import build_players, distill_config, initial_state
from dmd2_jax.typing import PyTree

__all__ = [
    "LOCAL",
    "Plan",
    "batch_shapes",
    "find_remedy",
    "make_plan",
    "plan_table",
    "sweep",
    "sweep_table",
    "trace_cycle",
]

LOCAL = "local"
"""The topology that is this machine."""


class Plan(NamedTuple):
    """What one cycle costs. Bytes and FLOPs are those of one device.

    Attributes:
      name: the recipe.
      topology: what it is planned for, for example "v5p:4x4x4".
      chip: the peaks; None on this machine, whose peaks are not known.
      num_devices: devices of the mesh.
      num_chips: chips of the slice.
      mesh: the sizes of the axes.
      batch_size: of one turn, global.
      images: images that one cycle trains on, global.
      cycles: length of the recipe.
      owners: owner -> {"params", "optimiser", "average"} -> bytes.
      peak_bytes: the compiler's figure for everything together; where the program was refused, what
        the compiler says it would need.
      limit_bytes: what a device has; None if not known.
      refusal: what the compiler said; "" if the program compiled.
      flops: in one cycle.
      num_bytes: read and written in one cycle.
      collectives: by kind, in one cycle.
      compile_seconds: what planning took.
    """

    name: str
    topology: str
    chip: Chip | None
    num_devices: int
    num_chips: int
    mesh: dict[str, int]
    batch_size: int
    images: int
    cycles: int
    owners: dict[str, dict[str, int]]
    peak_bytes: int
    limit_bytes: float | None
    refusal: str
    flops: float
    num_bytes: int
    collectives: dict[str, Collective]
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the program compiled and stays below the memory there is."""
        return not self.refusal and (not self.limit_bytes or self.peak_bytes <= self.limit_bytes)

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds a cycle takes at least, by what bounds it; {} where no peaks are known."""
        if self.chip is None or self.refusal:
            return {}
        share = self.num_chips / self.num_devices  # of a chip that a device is
        linked = sum(collective.num_bytes for collective in self.collectives.values())
        return {
            "arithmetic": self.flops / (self.chip.flops * share),
            "memory": self.num_bytes / (self.chip.memory_bandwidth * share),
            "links": linked / (self.chip.link_bandwidth * share),
        }

    @property
    def seconds(self) -> float | None:
        """Seconds that a cycle takes at least."""
        return max(self.bounds.values()) if self.bounds else None

    @property
    def mfu(self) -> float | None:
        """Model FLOP utilisation at that time: the part of the arithmetic peak that is used."""
        return self.bounds["arithmetic"] / self.seconds if self.seconds else None


def batch_shapes(config: ConfigDict, family: Family, settings: DistillConfig) -> CycleBatch:
    """Return the shapes of what a cycle of a recipe reads, without any data."""
    turns, b, classes = settings.critic_turns, settings.batch_size, family.num_classes

    def labels(*lead: int) -> Any:
        return jax.ShapeDtypeStruct((*lead, classes), np.float32) if classes else None

    def images(*lead: int) -> Any:
        return jax.ShapeDtypeStruct((*lead, *family.image_shape), np.float32)

    noised_real = not settings.backward_simulation and len(settings.student_times) > 1
    real = Samples(images(turns, b), labels(turns, b)) if settings.has_gan or noised_real else None
    pairs = None
    if settings.regression_weight is not None:
        pairs = Pairs(images(b), images(b), labels(b))
    return CycleBatch(real, labels(turns, b), pairs)


def make_plan(config: ConfigDict, name: str = LOCAL) -> Plan:
    """Compile a recipe's cycle for a machine, and count.

    Args:
      config: the whole config; its data and weights are not opened.
      name: "local", or a TPU slice such as "v5e:4x4".

    Returns:
      The plan.

    Raises:
      ValueError: if the config or the topology is refused, or they do not fit each other.
    """
    start = time.perf_counter()
    chip, devices, num_chips = _machine(name)
    cycle = trace_cycle(config, devices)
    compiled, refusal = _compiled(cycle.traced)
    memory = None if compiled is None else compiled.memory_analysis()
    costs = read_program(compiled.as_text()) if compiled is not None else None
    size = cycle.mesh.size
    return Plan(
        name=config.name,
        topology=name,
        chip=chip,
        num_devices=size,
        num_chips=num_chips * size // len(devices),
        mesh=dict(cycle.mesh.shape),
        batch_size=config.distill.batch_size,
        images=config.distill.batch_size * (1 + config.distill.critic_turns),
        cycles=config.distill.cycles,
        owners=_owners(cycle),
        peak_bytes=_peak(memory) if memory is not None else _asked_for(refusal),
        limit_bytes=_limit(chip, devices, num_chips),
        refusal=refusal,
        flops=jaxpr_flops(cycle.traced.jaxpr) / size,
        num_bytes=costs.num_bytes if costs else 0,
        collectives=costs.collectives if costs else {},
        compile_seconds=time.perf_counter() - start,
    )


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
    check_batch_size(config.distill.batch_size, mesh)
    family = build_family(config)
    settings, players = distill_config(config, family), build_players(config, family)
    teacher, key = family.param_shapes(), jax.random.key(0)
    state = jax.eval_shape(lambda p: initial_state(players, settings, family, p, key), teacher)
    rules = mesh_rules(config.mesh)
    check_rules(rules, teacher, mesh)
    batch = batch_shapes(config, family, settings)
    shardings = cycle_shardings(state, teacher, batch, mesh, rules)
    cycle: Any = make_cycle(spread_players(players, mesh, rules), settings, shardings=shardings)
    traced = cycle.trace(state, teacher, batch, jax.eval_shape(lambda: key))
    return TracedCycle(traced, mesh, state, teacher, batch, shardings)


def sweep(
    config: ConfigDict, topologies: Sequence[str], batch_sizes: Sequence[int] = ()
) -> list[Plan]:
    """Plan one recipe for several machines and batch sizes, saying on standard error how far it is.

    Args:
      config: the whole config.
      topologies: names as for `make_plan`.
      batch_sizes: global batch sizes; () is the recipe's.

    Returns:
      The plans, topologies outermost.

    Raises:
      ValueError: see `make_plan`.
    """
    plans: list[Plan] = []
    pairs = list(itertools.product(topologies, batch_sizes or [config.distill.batch_size]))
    start = time.perf_counter()
    for number, (name, batch_size) in enumerate(pairs):
        left = ""
        if number:
            seconds = (time.perf_counter() - start) / number * (len(pairs) - number)
            left = f", about {seconds / 60:.0f} minutes left"
        print(
            f"plan {number + 1} of {len(pairs)}: {name}, batch {batch_size}: compiling{left} ...",
            file=sys.stderr,
            flush=True,
        )
        variant = config.copy_and_resolve_references()
        variant.distill.batch_size = batch_size
        plans.append(make_plan(variant, name))
    return plans


def find_remedy(config: ConfigDict, plan: Plan) -> str:
    """Compile variants of a recipe that does not fit until one does.

    Args:
      config: the whole config.
      plan: its plan.

    Returns:
      Which change makes it fit, or that none of those tried does.
    """
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    batch = config.distill.batch_size // shards
    halves = [n for n in (2, 4, 8, 16) if batch % n == 0]
    variants: list[dict[str, Any]] = [{"model.remat": True}]
    variants += [{"model.remat": True, "distill.microbatches": n} for n in halves]
    if plan.mesh["fsdp"] < shards:
        spread = {"mesh.data": 1, "mesh.fsdp": shards, "model.remat": True}
        variants += [spread] + [spread | {"distill.microbatches": n} for n in halves[-1:]]
    for changes in variants:
        text = " ".join(f"--config.{key}={value}" for key, value in changes.items())
        print(f"trying {text} ...", file=sys.stderr, flush=True)
        variant = config.copy_and_resolve_references()
        variant.update_from_flattened_dict(changes)
        tried = make_plan(variant, plan.topology)
        if tried.fits:
            return f"it fits with {text}: {_verdict(tried)}"
    return (
        f"none of {len(variants)} variants (rematerialisation, microbatches, fsdp) fits "
        f"{plan.topology}; try a larger slice or a smaller batch (`dmd2 plan --sweep`)."
    )


def _machine(name: str) -> tuple[Chip | None, Sequence[jax.Device], int]:
    """Return (chip, devices, number of chips)."""
    if name != LOCAL:
        chip, devices = topology(name)
        return chip, devices, math.prod(int(size) for size in name.partition(":")[2].split("x"))
    devices = jax.devices()
    return None, devices, len(devices)


def _compiled(traced: Any) -> tuple[Any, str]:
    """Return (the compiled program, ""), or (None, why it does not fit)."""
    try:
        return traced.lower().compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error)


def _peak(memory: Any) -> int:
    together = memory.argument_size_in_bytes + memory.output_size_in_bytes
    together += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return int(max(getattr(memory, "peak_memory_in_bytes", 0), together))


def _asked_for(refusal: str) -> int:
    """Read what a program would need off the compiler's refusal."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds|[Uu]sed ([\d.]+)([KMGT]) of", refusal)
    if not found:
        return 0
    number, unit = found[1] or found[3], found[2] or found[4]
    return int(float(number) * 1024 ** ("KMGT".index(unit) + 1))


def _limit(chip: Chip | None, devices: Sequence[jax.Device], num_chips: int) -> float | None:
    if chip is not None:
        return chip.memory * num_chips / len(devices)
    statistics = devices[0].memory_stats() or {}
    return statistics.get("bytes_limit")


def _owners(cycle: TracedCycle) -> dict[str, Any]:
    state, shardings = cycle.state, cycle.shardings

    def held(tree: PyTree, places: PyTree) -> int:
        sizes = jax.tree.map(
            lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
            tree,
            places,
        )
        return sum(jax.tree.leaves(sizes))

    owners = {"teacher": {"params": held(cycle.teacher, shardings.teacher)}}
    for name in ("generator", "critic", "discriminator"):
        player, places = getattr(state, name), getattr(shardings.state, name)
        if player is not None:
            owners[name] = {
                "params": held(player.params, places.params),
                "optimiser": held(player.opt_state, places.opt_state),
            }
    owners["generator"]["average"] = held(state.ema, shardings.state.ema)
    owners["batch"] = {"params": held(cycle.batch, shardings.batch)}
    return owners


def plan_table(plan: Plan) -> str:
    """Return a plan as text for the terminal."""
    sizes = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    lines = [
        f"{plan.name} on {plan.topology}: {plan.num_chips} chips, {plan.num_devices} devices, "
        f"mesh {sizes}, batch {plan.batch_size}",
        _verdict(plan),
        "",
        _memory_table(plan),
        "",
        f"arithmetic    {_si(plan.flops * plan.num_devices)}FLOP a cycle, "
        f"{_si(plan.flops)}FLOP a device",
    ]
    if plan.refusal:
        return "\n".join(lines)
    lines.append(f"memory traffic  at most {_si(plan.num_bytes)}B a device and cycle")
    for kind, collective in plan.collectives.items():
        moved = f"{_si(collective.num_bytes)}B a device"
        lines.append(f"  {kind}: {collective.number} a cycle, {moved}")
    if plan.chip is not None and plan.seconds and plan.mfu is not None:
        bounds = ", ".join(f"{what} {1e3 * s:.3g} ms" for what, s in plan.bounds.items())
        days = plan.seconds * plan.cycles / 86400
        lines += [
            f"time          at least {1e3 * plan.seconds:.3g} ms a cycle ({bounds}), "
            f"{plan.images / plan.seconds:,.0f} images/s, MFU at most {plan.mfu:.0%}",
            f"the recipe    {plan.cycles:,} cycles: at least {days:.3g} days, "
            f"{days * 24 * plan.num_chips:,.0f} chip-hours",
            f"peaks used    {plan.chip.name}, a chip: {_si(plan.chip.flops)}FLOP/s bfloat16, "
            f"{_si(plan.chip.memory)}B, {_si(plan.chip.memory_bandwidth)}B/s, links "
            f"{_si(plan.chip.link_bandwidth)}B/s",
        ]
    lines.append(f"compiled in {plan.compile_seconds:.0f} s")
    return "\n".join(lines)


def _verdict(plan: Plan) -> str:
    needed = f"{_si(plan.peak_bytes)}B a device"
    if plan.limit_bytes is None:
        return f"needs {needed}; how much there is, this backend does not say"
    there = f"{_si(plan.limit_bytes)}B there are"
    return f"{'FITS' if plan.fits else 'DOES NOT FIT'}: needs {needed}, {there}"


def _memory_table(plan: Plan) -> str:
    columns = ("params", "optimiser", "average")
    rows: list[tuple[object, ...]] = [("memory a device, MB", *columns)]
    for owner, held in plan.owners.items():
        cells = [f"{held[c] / 1e6:,.1f}" if c in held else "-" for c in columns]
        rows.append((owner, *cells))
    known = sum(sum(held.values()) for held in plan.owners.values())
    rest = max(plan.peak_bytes - known, 0) / 1e6
    rows.append(("activations, gradients, the rest", f"{rest:,.1f}", "", ""))
    rows.append(("together", f"{plan.peak_bytes / 1e6:,.1f}", "", ""))
    return aligned(rows)


def sweep_table(plans: Sequence[Plan]) -> str:
    """Return several plans as one table, one a line."""
    rows: list[tuple[object, ...]] = [
        ("topology", "chips", "batch", "GB", "of", "fits", "ms/cycle", "MFU", "days", "chip-hours")
    ]
    for plan in plans:
        limit = f"{plan.limit_bytes / 1e9:.1f}" if plan.limit_bytes else "?"
        start = (plan.topology, plan.num_chips, plan.batch_size, f"{plan.peak_bytes / 1e9:.2f}")
        verdict = "yes" if plan.fits else "NO"
        if plan.seconds and plan.mfu is not None:
            hours = plan.seconds * plan.cycles / 3600
            times = (f"{1e3 * plan.seconds:.3g}", f"{plan.mfu:.0%}", f"{hours / 24:.3g}")
            rows.append((*start, limit, verdict, *times, f"{hours * plan.num_chips:,.0f}"))
        else:
            rows.append((*start, limit, verdict, "-", "-", "-", "-"))
    return aligned(rows)


def _si(number: float) -> str:
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number / 1e3:.3g} k"
