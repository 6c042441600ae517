"""A plan's figures, and how they are shown."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dmd2_jax.plan.chips import Chip
from dmd2_jax.plan.program_costs import Collective
from dmd2_jax.recipe.tables import aligned

__all__ = ["HOST_COLUMN", "Plan", "Unplanned", "plan_table", "sweep_table", "verdict"]

HOST_COLUMN = "on the host"
"""The key of `Plan.owners` for what waits in the host's memory."""


class Plan(NamedTuple):
    """What one cycle costs. Bytes and FLOPs are those of one device.

    Attributes:
      name: the recipe.
      topology: what it is planned for, for example "v5p:4x4x4".
      chip: the peaks; None where they are not known.
      device_kind: what JAX calls the devices.
      num_devices: devices of the mesh.
      devices_per_chip: 2 where each of a chip's two cores is a device.
      mesh: the sizes of the axes.
      batch_size: of one turn, global.
      images: images that one cycle trains on, global.
      cycles: length of the recipe.
      owners: owner -> {"params", "optimiser", "average"} -> bytes in the device's memory, and
        "on the host" where something of it waits in the host's.
      peak_bytes: the compiler's figure for everything together; where the program was refused, what
        the compiler says it would need.
      limit_bytes: what a device has; None if not known.
      host_bytes: what the compiler keeps in the host's memory for a device; 0 on a CPU, whose
        memory is one.
      refusal: what the compiler said; "" if the program compiled.
      flops: in one cycle, with what rematerialisation computes again.
      model_flops: in one cycle without it.
      num_bytes: read and written in one cycle.
      collectives: by kind, in one cycle.
      compile_seconds: what planning took.
      student_steps: of the student. Of one, seconds are a floor; of several, the arithmetic of
        backward simulation is counted from above.
      is_compiled: False: the program was only traced, and the peak is what the owners hold, without
        gradients and activations; traffic and collectives are not known.
    """

    name: str
    topology: str
    chip: Chip | None
    device_kind: str
    num_devices: int
    devices_per_chip: int
    mesh: dict[str, int]
    batch_size: int
    images: int
    cycles: int
    owners: dict[str, dict[str, int]]
    peak_bytes: int
    limit_bytes: float | None
    host_bytes: int
    refusal: str
    flops: float
    model_flops: float
    num_bytes: int
    collectives: dict[str, Collective]
    compile_seconds: float
    student_steps: int = 1
    is_compiled: bool = True

    @property
    def num_chips(self) -> int:
        """Chips that the mesh's devices are on."""
        return math.ceil(self.num_devices / self.devices_per_chip)

    @property
    def fits(self) -> bool:
        """Whether the program was not refused and stays below the memory there is."""
        return not self.refusal and (not self.limit_bytes or self.peak_bytes <= self.limit_bytes)

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that each resource alone is busy at its peak; {} where no peaks are known.

        Links are counted from below, and the main memory as if each operand was read once;
        arithmetic as it is traced, which for a student of several steps is from above: backward
        simulation runs to the drawn step, and is counted as if to the last.
        """
        if self.chip is None or self.refusal:
            return {}
        share = 1 / self.devices_per_chip
        arithmetic = {"arithmetic": self.flops / (self.chip.flops * share)}
        if not self.is_compiled:
            return arithmetic
        linked = sum(collective.num_bytes for collective in self.collectives.values())
        return arithmetic | {
            "memory": self.num_bytes / (self.chip.memory_bandwidth * share),
            "links": linked / (self.chip.link_bandwidth * share),
        }

    @property
    def seconds(self) -> float | None:
        """Seconds of a cycle by the roofline: those of the busiest resource."""
        return max(self.bounds.values()) if self.bounds else None

    @property
    def mfu(self) -> float | None:
        """Model FLOP utilisation at that time: the part of the arithmetic peak that is of use.

        What rematerialisation computes again is of none (PaLM, arXiv 2204.02311, appendix B).
        """
        if not self.seconds or not self.flops:
            return None
        return self.bounds["arithmetic"] / self.seconds * self.model_flops / self.flops


class Unplanned(NamedTuple):
    """A row of a sweep whose batch or mesh does not go with the slice.

    Attributes:
      topology: as of a `Plan`.
      num_chips: of the slice.
      batch_size: of one turn, global.
      reason: why not, and what to try.
    """

    topology: str
    num_chips: int
    batch_size: int
    reason: str


def plan_table(plan: Plan) -> str:
    """Return a plan as text for the terminal."""
    sizes = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    lines = [
        f"{plan.name} on {plan.topology}: {plan.num_chips} chips, {plan.num_devices} devices, "
        f"mesh {sizes}, batch {plan.batch_size}",
        verdict(plan),
        "",
        _memory_table(plan),
        "",
        _arithmetic(plan),
    ]
    if plan.refusal:
        return "\n".join(lines)
    if plan.is_compiled:
        lines.append(f"memory traffic  about {_si(plan.num_bytes)}B a device and cycle")
    for kind, collective in plan.collectives.items():
        moved = f"{_si(collective.num_bytes)}B a device"
        lines.append(f"  {kind}: {collective.number} a cycle, {moved}")
    if plan.chip is None:
        lines.append(
            f"no roofline   no published peaks of {plan.device_kind!r} are known here (chips.py of "
            "dmd2_jax/plan lists them), so no time, MFU or chip-hours"
        )
    if plan.chip is not None and plan.seconds and plan.mfu is not None:
        bounds = ", ".join(f"{what} {1e3 * s:.3g} ms" for what, s in plan.bounds.items())
        days = plan.seconds * plan.cycles / 86400
        least, most = ("at least", "at most") if plan.student_steps == 1 else ("about", "about")
        lines += [
            f"roofline      {least} {1e3 * plan.seconds:.3g} ms a cycle, the largest of {bounds}: "
            f"{most} {plan.images / plan.seconds:,.0f} images/s and an MFU of {plan.mfu:.0%} "
            "(model FLOPs alone)",
            f"the recipe    {plan.cycles:,} cycles: {least} {days:.3g} days, "
            f"{days * 24 * plan.num_chips:,.0f} chip-hours",
            f"peaks used    {plan.chip.name}, a chip: {_si(plan.chip.flops)}FLOP/s bfloat16, "
            f"{_si(plan.chip.memory)}B, {_si(plan.chip.memory_bandwidth)}B/s, links "
            f"{_si(plan.chip.link_bandwidth)}B/s",
        ]
    done = "compiled" if plan.is_compiled else "traced, not compiled,"
    lines.append(f"{done} in {plan.compile_seconds:.0f} s")
    return "\n".join(lines)


def _arithmetic(plan: Plan) -> str:
    line = f"arithmetic    {_si(plan.flops * plan.num_devices)}FLOP a cycle, "
    line += f"{_si(plan.flops)}FLOP a device"
    again = 1 - plan.model_flops / plan.flops if plan.flops else 0.0
    return line + (
        f", {again:.0%} of it computed again (model.remat, attention)" if again > 0 else ""
    )


def verdict(plan: Plan) -> str:
    """Return whether a plan fits, and what it needs, in one line."""
    needed = f"{_si(plan.peak_bytes)}B a device"
    if plan.limit_bytes is None:
        return f"needs {needed}; how much there is, this backend does not say"
    there = f"{_si(plan.limit_bytes)}B there are"
    if not plan.is_compiled and plan.fits:
        return (
            f"weights and states need {needed}, {there}: whether the rest fits, only compiling says"
        )
    return f"{'FITS' if plan.fits else 'DOES NOT FIT'}: needs {needed}, {there}"


def _memory_table(plan: Plan) -> str:
    columns = ["params", "optimiser", "average"]
    waiting = sum(held.get(HOST_COLUMN, 0) for held in plan.owners.values())
    if waiting:
        columns.append(HOST_COLUMN)
    blank = [""] * (len(columns) - 1)
    rows: list[tuple[object, ...]] = [("memory a device, MB", *columns)]
    for owner, held in plan.owners.items():
        cells = [f"{held[c] / 1e6:,.1f}" if c in held else "-" for c in columns]
        rows.append((owner, *cells))
    # A compiler with one memory has counted there what waits on the host.
    known = sum(sum(held.values()) for held in plan.owners.values()) - min(plan.host_bytes, waiting)
    rest = f"{max(plan.peak_bytes - known, 0) / 1e6:,.1f}" if plan.is_compiled else "?"
    rows.append(("activations, gradients, the rest", rest, *blank))
    rows.append(("together", f"{plan.peak_bytes / 1e6:,.1f}", *blank))
    return aligned(rows)


def sweep_table(plans: Sequence[Plan | Unplanned]) -> str:
    """Return several plans as one table, one a line; GB is 10^9 bytes."""
    rows: list[tuple[object, ...]] = [
        (
            *("topology", "chips", "batch", "GB", "of", "fits"),
            *("ms/cycle >", "MFU <", "days >", "chip-hours >"),
        )
    ]
    for plan in plans:
        if isinstance(plan, Unplanned):
            unknown = ("-",) * 4
            row = (plan.topology, plan.num_chips, plan.batch_size, "-", "-", "NO", *unknown)
            rows.append(row)
            continue
        limit = f"{plan.limit_bytes / 1e9:.1f}" if plan.limit_bytes else "?"
        needed = f"{'' if plan.is_compiled else '> '}{plan.peak_bytes / 1e9:.2f}"
        start = (plan.topology, plan.num_chips, plan.batch_size, needed)
        verdict = ("yes" if plan.is_compiled else "?") if plan.fits else "NO"
        if plan.seconds and plan.mfu is not None:
            hours = plan.seconds * plan.cycles / 3600
            times = (f"{1e3 * plan.seconds:.3g}", f"{plan.mfu:.0%}", f"{hours / 24:.3g}")
            rows.append((*start, limit, verdict, *times, f"{hours * plan.num_chips:,.0f}"))
        else:
            rows.append((*start, limit, verdict, "-", "-", "-", "-"))
    header, *lines = aligned(rows).splitlines()
    for i, plan in enumerate(plans):
        if isinstance(plan, Unplanned):
            lines[i] += f"  NO: {plan.reason}"
    return "\n".join([header, *lines])


def _si(number: float) -> str:
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number / 1e3:.3g} k"
