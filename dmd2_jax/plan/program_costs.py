"""What a program costs: bytes and collectives from its compiled text, FLOPs from its jaxpr.

The compiler's own cost analysis counts the body of a loop once; both are counted here as often as
it runs.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dmd2_jax.config.refused import Refused
from dmd2_jax.plan.program_text import Computations, Instruction, read_text

__all__ = ["Collective", "ProgramCosts", "read_program"]

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

# They move nothing by themselves: names for what is there, or control whose parts count.
_FREE = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "call",
        "conditional",
        "after-all",
        "opt-barrier",
        "partition-id",
        "replica-id",
        "async-start",  # what it starts is a computation of its own
    }
)
_PARTS = ("slice", "dynamic-slice", "gather")  # they read of their first operand what they return
_WRITES_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # and where among the operands it is

# Their results are tuples that hold the operands again.
_NAMES_ITS_OPERANDS = frozenset(
    {
        "copy-start",
        "all-gather-start",
        "all-to-all-start",
        "collective-permute-start",
        "reduce-scatter-start",
    }
)


class Collective(NamedTuple):
    """All collectives of one kind in one execution.

    Attributes:
      number: how many run.
      num_bytes: of their results; of reduce-scatters what they reduce, which is what travels: the
        result is one device's part of it.
    """

    number: int
    num_bytes: int


class ProgramCosts(NamedTuple):
    """What one execution costs one device.

    Attributes:
      num_bytes: bytes that instructions read and write in the device's main memory, each operand
        and each result once: fused instructions count once, of an array that is sliced or updated
        in place the part that is read or written, what the compiler holds in a chip's fast memory
        not at all. A product that reads its operands tile by tile may read some more often.
      collectives: by kind, for example "all-reduce"; also those that the compiler has fused.
    """

    num_bytes: int
    collectives: dict[str, Collective]


def read_program(text: str) -> ProgramCosts:
    """Read bytes and collectives off a compiled program's text.

    Of a branch the largest side counts. A collective that is fused with what surrounds it counts
    once, in however many fusions the compiler has laid pieces of it.

    Args:
      text: from `compiled.as_text()`: the program of one device.

    Returns:
      The costs of one execution.

    Raises:
      ValueError: if the text is no HLO module with an entry.
    """
    computations, entry = read_text(text)
    if entry is None:
        raise Refused(
            f"the program's text has no ENTRY ({text[:60]!r}...), expected compiled.as_text()."
        )
    num_bytes, collectives = _cost(computations, entry, {})
    return ProgramCosts(num_bytes, dict(sorted(collectives.items())))


def _cost(computations: Computations, name: str, known: dict[str, ProgramCosts]) -> ProgramCosts:
    """Return what one run of a computation costs; `known` keeps what was found."""
    if name in known:
        return known[name]
    costs = ProgramCosts(0, {})
    instructions = computations.get(name, {})
    seen: set[tuple[str, int, str]] = set()
    for instruction in instructions.values():
        operands = [instructions[name] for name in instruction.operands if name in instructions]
        found: dict[str, Collective] = {}
        if instruction.opcode == "fusion":
            for piece in _fused(computations, instruction):
                kind, num_bytes, _ = piece
                if piece not in seen or kind == "reduce-scatter":  # which is never in pieces
                    found = _sum(found, {kind: Collective(1, num_bytes)})
                seen.add(piece)
        elif _kind(instruction) in COLLECTIVES:
            size = _collective_bytes(instruction, operands)
            found = {_kind(instruction): Collective(1, size)}
        costs = _plus(costs, ProgramCosts(_moved(computations, instructions, instruction), found))
        for times, called in _called(computations, instruction, known):
            costs = _plus(costs, called, times)
    known[name] = costs
    return costs


def _called(
    computations: Computations, instruction: Instruction, known: dict[str, ProgramCosts]
) -> Iterator[tuple[int, ProgramCosts]]:
    """Yield (how often, what) an instruction runs of other computations."""
    if instruction.opcode == "while":
        body = re.search(r"body=%?([\w.\-]+)", instruction.text)
        if body:
            yield _trips(computations, instruction), _cost(computations, body[1], known)
    elif instruction.opcode == "conditional":
        # One of two by a truth value is written true_computation=%a, false_computation=%b; one of
        # several by a number, and all that jax.lax.cond makes, branch_computations={%a, %b}.
        sides = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.text)
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.text)
        sides += re.findall(r"[\w.\-]+", listed[1]) if listed else []
        yield 1, _largest([_cost(computations, side, known) for side in sides])
    elif instruction.opcode in ("call", "async-start"):
        for called in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", instruction.text):
            yield 1, _cost(computations, called, known)


def _fused(computations: Computations, fusion: Instruction) -> Iterator[tuple[str, int, str]]:
    """Yield (kind, bytes, channel) of the collectives inside of a fusion.

    A TPU's reduce-scatter is a fusion of an all-reduce and slices of its results. A collective
    that runs beside others' computation is in several fusions, the ones that start and end it and
    those beside which it runs; all name its channel.
    """
    inside = _inside(computations, fusion)
    sliced = {
        _source(inside, one.operands[0])
        for one in inside.values()
        if one.opcode in ("dynamic-slice", "slice") and one.operands
    }
    for name, one in inside.items():
        if one.opcode == "fusion":
            yield from _fused(computations, one)
        elif _kind(one) in COLLECTIVES:
            operands = [inside[name] for name in one.operands if name in inside]
            channel = re.search(r"channel_id=(\d+)", one.text)
            scatters = _kind(one) == "all-reduce" and name in sliced
            kind = "reduce-scatter" if scatters else _kind(one)
            yield kind, _collective_bytes(one, operands), channel[1] if channel else ""


def _source(instructions: dict[str, Instruction], name: str) -> str:
    """Return the instruction that computes what another one hands on."""
    while name in instructions and instructions[name].opcode in ("get-tuple-element", "bitcast"):
        name = instructions[name].operands[0]
    return name


def _kind(instruction: Instruction) -> str:
    return instruction.opcode.removesuffix("-start")


def _collective_bytes(instruction: Instruction, operands: list[Instruction]) -> int:
    """Return the bytes of a collective: its results', or what a reduce-scatter reduces."""
    given = sum(operand.num_bytes for operand in operands)
    if _kind(instruction) == "reduce-scatter":
        return given
    return instruction.num_bytes - (given if instruction.opcode in _NAMES_ITS_OPERANDS else 0)


def _moved(
    computations: Computations, around: dict[str, Instruction], instruction: Instruction
) -> int:
    """Return the bytes that an instruction itself reads and writes in the main memory."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0
    if opcode in _NAMES_ITS_OPERANDS:
        return instruction.main_bytes
    operands = [around[name] for name in instruction.operands if name in around]
    if opcode == "slice-start":  # a prefetch of a part: ((operand), part, a number)
        part = instruction.arrays[sum(len(operand.arrays) for operand in operands)]
        reads = part.num_bytes if any(operand.main_bytes for operand in operands) else 0
        return reads + (part.num_bytes if part.is_main else 0)
    moved = sum(
        min(operand.main_bytes, _read(computations, around, instruction, position))
        for position, operand in enumerate(operands)
    )
    written = _written(computations, around, instruction)
    for array, num_bytes in zip(instruction.arrays, written, strict=True):
        moved += num_bytes if array.is_main else 0
    return moved


def _read(
    computations: Computations,
    around: dict[str, Instruction],
    instruction: Instruction,
    position: int,
) -> int:
    """Return how many bytes an instruction reads of one of its operands, wherever that is."""
    operands = [around[name] for name in instruction.operands if name in around]
    whole = operands[position].num_bytes
    if instruction.opcode == "fusion":
        inside = _inside(computations, instruction)
        for name, one in inside.items():
            if one.opcode == "parameter" and one.text.startswith(f"{position})"):
                return min(whole, _used(computations, inside, name))
    elif position == 0 and instruction.opcode in _PARTS:
        return min(whole, instruction.num_bytes)
    elif position == 0 and instruction.opcode == "dynamic-update-slice":
        return 0
    elif position == 0 and instruction.opcode == "scatter" and len(operands) == 3:
        return min(whole, operands[2].num_bytes)
    return whole


def _used(computations: Computations, inside: dict[str, Instruction], name: str) -> int:
    """Return how many bytes a computation reads of one of its arrays."""
    if inside[name].is_root:
        return inside[name].num_bytes
    used = 0
    for user, one in inside.items():
        if name not in one.operands:
            continue
        if one.opcode == "bitcast":
            used += _used(computations, inside, user)
            continue
        known = [operand for operand in one.operands if operand in inside]
        for position, operand in enumerate(known):
            used += _read(computations, inside, one, position) if operand == name else 0
    return used


def _written(
    computations: Computations, around: dict[str, Instruction], instruction: Instruction
) -> list[int]:
    """Return how many bytes an instruction writes of each of its results, wherever they are."""
    whole = [array.num_bytes for array in instruction.arrays]
    operands = [around[name] for name in instruction.operands if name in around]
    if instruction.opcode == "bitcast" and operands:
        written = _written(computations, around, operands[0])
        return written if len(written) == len(whole) else whole
    part = _WRITES_IN_PLACE.get(instruction.opcode, len(operands))
    if part < len(operands) and len(whole) == 1:
        return [min(whole[0], operands[part].num_bytes)]
    if instruction.opcode == "fusion":
        inside = _inside(computations, instruction)
        for root in (one for one in inside.values() if one.is_root):
            parts = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
            found = [_written(computations, inside, one) for one in parts]
            if [len(one) for one in found] == [1] * len(whole):
                return [min(size, one[0]) for size, one in zip(whole, found, strict=True)]
    return whole


def _inside(computations: Computations, fusion: Instruction) -> dict[str, Instruction]:
    called = re.search(r"calls=%?([\w.\-]+)", fusion.text)
    return computations.get(called[1], {}) if called else {}


def _plus(costs: ProgramCosts, more: ProgramCosts, times: int = 1) -> ProgramCosts:
    """Return costs and `times` as much more."""
    return ProgramCosts(
        costs.num_bytes + times * more.num_bytes, _sum(costs.collectives, more.collectives, times)
    )


def _sum(
    some: dict[str, Collective], more: dict[str, Collective], times: int = 1
) -> dict[str, Collective]:
    together = dict(some)
    for kind, one in more.items():
        number, num_bytes = together.get(kind, (0, 0))
        together[kind] = Collective(number + times * one.number, num_bytes + times * one.num_bytes)
    return together


def _largest(sides: Sequence[ProgramCosts]) -> ProgramCosts:
    """Return the largest of each figure."""
    kinds = {kind for side in sides for kind in side.collectives}
    return ProgramCosts(
        max((side.num_bytes for side in sides), default=0),
        {
            kind: max(
                (side.collectives.get(kind, Collective(0, 0)) for side in sides),
                key=lambda one: (one.num_bytes, one.number),
            )
            for kind in kinds
        },
    )


def _trips(computations: Computations, loop: Instruction) -> int:
    """Return how often a loop runs: as the compiler notes it, or from `i < N` in its condition."""
    noted = re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', loop.text)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
    inside = computations.get(condition[1], {}) if condition else {}
    limits = [re.match(r"(\d+)\)", i.text) for i in inside.values() if i.opcode == "constant"]
    found = [int(limit[1]) for limit in limits if limit]
    return found[0] if len(found) == 1 else 1
