"""What a recipe's cycle costs on a machine that need not be there: `dmd2 plan`.

The real cycle is compiled, ahead of time, for the slice. Memory is the compiler's own figure;
FLOPs are counted in the traced program, bytes and collectives in the compiled one, with the body
of the scan over critic turns counted as often as it runs. The time is that of a roofline with the
published peaks: no program reaches them all the way.
"""

import itertools
import math
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import say_sizes, sides, sizes_of
from dmd2_jax.config.times import number_of_steps
from dmd2_jax.plan.buffers import Buffers, assign_buffers
from dmd2_jax.plan.chips import Chip
from dmd2_jax.plan.cycle import LOCAL, machine, open_cycle
from dmd2_jax.plan.jaxpr_flops import jaxpr_flops
from dmd2_jax.plan.program_costs import read_program
from dmd2_jax.plan.tables import HOST_COLUMN, Plan, Unplanned, verdict
from dmd2_jax.recipe.distillation import Distillation, distill_config, trace
from dmd2_jax.recipe.open import at_size, build_family, check
from dmd2_jax.recipe.placement import OFFLOAD
from dmd2_jax.runtime.offload import in_host_memory
from dmd2_jax.runtime.sharding import check_batch_size, make_mesh
from dmd2_jax.typing import PyTree

__all__ = ["STAGES", "by_shape", "find_remedy", "make_plan", "sweep"]

STAGES = ("trace", "buffers", "program")
"""How far a plan can go, the cheapest first."""


def make_plan(config: ConfigDict, name: str = LOCAL, *, until: str | None = None) -> Plan:
    """Compile a recipe's cycle for a machine, and count.

    Args:
      config: the whole config; its data and weights are not opened.
      name: "local", or a TPU slice such as "v5e:4x4".
      until: how far to go, of `STAGES`: "trace" (weights, states and arithmetic alone are then
        known), "buffers" (all but the machine code, see `assign_buffers`), "program". None:
        "program" for this machine, "buffers" for a slice, whose machine code can take most of an
        hour and tells nothing more.

    Returns:
      The plan.

    Raises:
      ValueError: if the config or the topology is refused, or they do not fit each other.
      ChildProcessError: with "buffers", if the compiler fails otherwise than by lack of memory.
    """
    if until is None:
        until = "program" if name == LOCAL else "buffers"
    if until not in STAGES:
        raise Refused(f"until={until!r}, expected one of {STAGES}; correct it.")
    start = time.perf_counter()
    chip, devices, num_chips = machine(name)
    cycle = open_cycle(config, devices)
    traced = trace(cycle)
    owners, flops = _owners(cycle), jaxpr_flops(traced.jaxpr)
    model_flops = _model_flops(config, devices, traced)
    found = Buffers(_held(owners), 0, "", "")
    if until == "buffers":
        found = assign_buffers(config, name)
    elif until == "program":
        found = _compiled(traced)
    costs = read_program(found.text) if found.text else None
    size, devices_per_chip = cycle.mesh.size, len(devices) // num_chips
    return Plan(
        name=config.name,
        topology=name,
        chip=chip,
        device_kind=devices[0].device_kind,
        num_devices=size,
        devices_per_chip=devices_per_chip,
        mesh=dict(cycle.mesh.shape),
        batch_size=config.distill.batch_size,
        images=config.distill.batch_size * (1 + config.distill.critic_turns),
        cycles=config.distill.cycles,
        owners=owners,
        peak_bytes=found.num_bytes or _asked_for(found.refusal),
        limit_bytes=_limit(name, chip, devices, devices_per_chip),
        host_bytes=found.host_bytes,
        refusal=found.refusal,
        flops=flops / size,
        model_flops=model_flops / size,
        num_bytes=costs.num_bytes if costs else 0,
        collectives=costs.collectives if costs else {},
        compile_seconds=time.perf_counter() - start,
        student_steps=number_of_steps(config.distill),
        is_compiled=until != "trace",
    )


def by_shape(config: ConfigDict) -> list[ConfigDict]:
    """Return a config for each of its shapes, the largest first; each has a program of its own."""
    sizes = sizes_of(config.model.resolution)
    if len(sizes) == 1:
        return [config]
    found = []
    for size in sorted(sizes, key=lambda size: -math.prod(sides(size))):
        each = at_size(config, size).unlock()
        each.name = f"{config.name} at {say_sizes(size)}"
        found.append(each.lock())
    return found


def sweep(
    config: ConfigDict,
    topologies: Sequence[str],
    batch_sizes: Sequence[int] = (),
    *,
    until: str | None = None,
) -> list[Plan | Unplanned]:
    """Plan one recipe for several machines and batch sizes, saying on standard error how far it is.

    Args:
      config: the whole config.
      topologies: names as for `make_plan`.
      batch_sizes: global batch sizes; () is the recipe's.
      until: see `make_plan`.

    Returns:
      The plans, topologies outermost; in place of one the reason why there is none.

    Raises:
      ValueError: if a topology does not exist, or if there is no plan for any of them; nothing is
        compiled then.
    """
    pairs = list(itertools.product(topologies, batch_sizes or [config.distill.batch_size]))
    variants = [_with_batch(config, name, batch_size) for name, batch_size in pairs]
    refused = [variant for variant in variants if isinstance(variant, Unplanned)]
    if len(refused) == len(pairs):
        first = refused[0]
        raise Refused(f"{first.topology}, batch {first.batch_size}: {first.reason}")
    plans: list[Plan | Unplanned] = []
    start, number, count = time.perf_counter(), 0, len(pairs) - len(refused)
    for (name, batch_size), variant in zip(pairs, variants, strict=True):
        if isinstance(variant, Unplanned):
            plans.append(variant)
            continue
        left = ""
        if number:
            seconds = (time.perf_counter() - start) / number * (count - number)
            left = f", about {seconds / 60:.0f} minutes left"
        number += 1
        print(
            f"plan {number} of {count}: {name}, batch {batch_size}: "
            f"{'tracing' if until == 'trace' else 'compiling'}{left} ...",
            file=sys.stderr,
            flush=True,
        )
        plans.append(make_plan(variant, name, until=until))
    return plans


def find_remedy(config: ConfigDict, plan: Plan, until: str | None = None) -> str:
    """Compile variants of a recipe that does not fit until one does.

    Args:
      config: the whole config.
      plan: its plan.
      until: see `make_plan`; "trace" knows too little.

    Returns:
      Which change makes it fit, or that none of those tried does.
    """
    shards = plan.mesh["data"] * plan.mesh["fsdp"]
    batch = config.distill.batch_size // shards
    parts = _parts(batch)
    # A family of the user's own need not have the key.
    remat: dict[str, Any] = {"model.remat": "full"} if "remat" in config.model else {}
    variants: list[dict[str, Any]] = [{"model.remat": "block"}, remat] if remat else []
    variants += [remat | {"distill.microbatches": n} for n in parts]
    if plan.mesh["fsdp"] < shards:
        spread = remat | {"mesh.data": 1, "mesh.fsdp": shards}
        variants += [spread] + [spread | {"distill.microbatches": n} for n in parts[-1:]]
    # Last what costs time on the host's links, or changes numbers.
    variants.append((variants or [remat])[-1] | {"mesh.offload": OFFLOAD})
    variants.append(variants[-1] | {"optim.moment_dtype": "bfloat16"})
    for changes in variants:
        text = " ".join(f"`config.{key}={_text(value)}`" for key, value in changes.items())
        print(f"trying {text} ...", file=sys.stderr, flush=True)
        variant = config.copy_and_resolve_references()
        variant.update_from_flattened_dict(changes)
        tried = make_plan(variant, plan.topology, until=until)
        if tried.fits:
            return f"it fits with {text}: {verdict(tried)}"
    return (
        f"none of {len(variants)} variants (rematerialisation, microbatches, fsdp, offload, "
        f"bfloat16 moments) fits {plan.topology}; try a larger slice or a smaller batch "
        "(`dmd2 plan` sweeps over both)."
    )


def _parts(batch: int) -> list[int]:
    """Return numbers of microbatches that divide a device's batch, each at least twice the last."""
    parts = [1]
    for n in range(2, min(batch, 64) + 1):
        if batch % n == 0 and n >= 2 * parts[-1]:
            parts.append(n)
    return parts[1:]


def _with_batch(config: ConfigDict, name: str, batch_size: int) -> ConfigDict | Unplanned:
    """Return the config with another batch, or why a machine does not go with it."""
    variant = config.copy_and_resolve_references()
    variant.distill.batch_size = batch_size
    _, devices, num_chips = machine(name)
    try:
        check(variant)
        mesh = make_mesh(variant.mesh, devices)
        _check_divides(batch_size, mesh, num_chips)
        settings = distill_config(variant, build_family(variant))
        check_batch_size(batch_size, mesh, settings.microbatches)
    except ValueError as error:
        return Unplanned(name, num_chips, batch_size, str(error))
    return variant


def _check_divides(batch_size: int, mesh: Mesh, num_chips: int) -> None:
    try:
        check_batch_size(batch_size, mesh)
    except ValueError as error:
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        what = "chips" if shards == num_chips else "shards (data x fsdp)"
        remedy = str(error).rpartition("; ")[2]
        message = f"batch {batch_size} does not divide over {shards} {what}, {remedy}"
        raise Refused(message) from error


def _model_flops(config: ConfigDict, devices: Sequence[jax.Device], traced: Any) -> float:
    """Return the FLOPs of a cycle that computes nothing twice; `traced` is the config's own.

    It is traced only.
    """
    if config.model.get("remat", "none") != "none":
        keeping = config.copy_and_resolve_references()
        keeping.model.remat = "none"
        traced = trace(open_cycle(keeping, devices))
    return jaxpr_flops(traced.jaxpr, again=False)


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _compiled(traced: Any) -> Buffers:
    """Return what a program takes, compiled to its end in this process."""
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Buffers(0, 0, "", str(error))
    memory = compiled.memory_analysis()
    together = memory.argument_size_in_bytes + memory.output_size_in_bytes
    together += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    peak = int(max(getattr(memory, "peak_memory_in_bytes", 0), together))
    return Buffers(peak, int(memory.host_argument_size_in_bytes), compiled.as_text(), "")


def _held(owners: dict[str, dict[str, int]]) -> int:
    """Return what the owners hold in a device's memory."""
    held = (
        size for parts in owners.values() for part, size in parts.items() if part != HOST_COLUMN
    )
    return sum(held)


def _asked_for(refusal: str) -> int:
    """Read what a program would need off the compiler's refusal."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds|[Uu]sed ([\d.]+)([KMGT]) of", refusal)
    if not found:
        return 0
    number, unit = found[1] or found[3], found[2] or found[4]
    return int(float(number) * 1024 ** ("KMGT".index(unit) + 1))


def _limit(
    name: str, chip: Chip | None, devices: Sequence[jax.Device], devices_per_chip: int
) -> float | None:
    """Return what a program may take of a device; of one that is here the backend says it."""
    statistics = (devices[0].memory_stats() or {}) if name == LOCAL else {}
    published = chip.memory / devices_per_chip if chip else None
    return statistics.get("bytes_limit", published)


def _owners(cycle: Distillation) -> dict[str, Any]:
    state, shardings = cycle.state, cycle.shardings

    def held(tree: PyTree, places: PyTree, host: bool = False) -> int:
        sizes = jax.tree.map(
            lambda leaf, place: (
                math.prod(place.shard_shape(leaf.shape))
                * leaf.dtype.itemsize
                * (in_host_memory(place) == host)
            ),
            tree,
            places,
        )
        return sum(jax.tree.leaves(sizes))

    owners = {"teacher": {"params": held(cycle.teacher, shardings.teacher)}}
    waiting = {"teacher": held(cycle.teacher, shardings.teacher, host=True)}
    for name in ("generator", "critic", "discriminator"):
        player, places = getattr(state, name), getattr(shardings.state, name)
        if player is not None:
            owners[name] = {
                "params": held(player.params, places.params),
                "optimiser": held(player.opt_state, places.opt_state),
            }
            waiting[name] = held(player, places, host=True)
    owners["generator"]["average"] = held(state.ema, shardings.state.ema)
    owners["batch"] = {"params": held(cycle.batch, shardings.batch)}
    for name, size in waiting.items():
        if size:
            owners[name][HOST_COLUMN] = size
    return owners
