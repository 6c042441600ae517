"""What a program costs: bytes and collectives from its compiled text, FLOPs from its jaxpr.

The compiler's own cost analysis counts the body of a loop once; both are counted here as often as
it runs.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dmd2_jax.config.refused import Refused

__all__ = ["Collective", "ProgramCosts", "read_program"]

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

_BYTES = {
    "pred": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "f64": 8,
    "c64": 8,
    "c128": 16,
} | {f"{kind}{bits}": max(1, bits // 8) for kind in "su" for bits in (2, 4, 8, 16, 32, 64)}

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
    }
)


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

# An array outside of the main memory, as a TPU program's text has it: f32[8,128]{1,0:T(8,128)S(1)}
_ELSEWHERE = re.compile(r"[a-z]\w*\[[\d,]*\]\{[^{}]*S\([1-9]\d*\)[^{}]*\}")


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
      num_bytes: bytes that instructions read and write in the device's main memory: fused
        instructions count once, what the compiler holds in a chip's fast memory does not count. An
        upper bound, since an instruction need not read all of an operand (a slice of it, say).
      collectives: by kind, for example "all-reduce"; also those that the compiler has fused.
    """

    num_bytes: int
    collectives: dict[str, Collective]


class _Instruction(NamedTuple):
    opcode: str
    num_bytes: int
    main_bytes: int  # of num_bytes, those in the main memory
    operands: list[str]
    text: str


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
    computations, entry = _parse(text)
    if entry is None:
        raise Refused(
            f"the program's text has no ENTRY ({text[:60]!r}...), expected compiled.as_text()."
        )
    num_bytes, collectives = _cost(computations, entry, {})
    return ProgramCosts(num_bytes, dict(sorted(collectives.items())))


_Computations = dict[str, dict[str, _Instruction]]


def _cost(computations: _Computations, name: str, known: dict[str, ProgramCosts]) -> ProgramCosts:
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
        costs = _plus(costs, ProgramCosts(_moved(instruction, operands), found))
        for times, called in _called(computations, instruction, known):
            costs = _plus(costs, called, times)
    known[name] = costs
    return costs


def _called(
    computations: _Computations, instruction: _Instruction, known: dict[str, ProgramCosts]
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


def _fused(computations: _Computations, fusion: _Instruction) -> Iterator[tuple[str, int, str]]:
    """Yield (kind, bytes, channel) of the collectives inside of a fusion.

    A TPU's reduce-scatter is a fusion of an all-reduce and slices of its results. A collective
    that runs beside others' computation is in several fusions, the ones that start and end it and
    those beside which it runs; all name its channel.
    """
    called = re.search(r"calls=%?([\w.\-]+)", fusion.text)
    inside = computations.get(called[1], {}) if called else {}
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


def _source(instructions: dict[str, _Instruction], name: str) -> str:
    """Return the instruction that computes what another one hands on."""
    while name in instructions and instructions[name].opcode in ("get-tuple-element", "bitcast"):
        name = instructions[name].operands[0]
    return name


def _kind(instruction: _Instruction) -> str:
    return instruction.opcode.removesuffix("-start")


def _collective_bytes(instruction: _Instruction, operands: list[_Instruction]) -> int:
    """Return the bytes of a collective: its results', or what a reduce-scatter reduces."""
    given = sum(operand.num_bytes for operand in operands)
    if _kind(instruction) == "reduce-scatter":
        return given
    return instruction.num_bytes - (given if instruction.opcode in _NAMES_ITS_OPERANDS else 0)


def _moved(instruction: _Instruction, operands: list[_Instruction]) -> int:
    """Return the bytes that an instruction itself reads and writes in the main memory."""
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0
    given = sum(operand.main_bytes for operand in operands)
    if instruction.opcode == "slice-start":  # a prefetch of a part: ((operand), part, a number)
        part = instruction.num_bytes - sum(operand.num_bytes for operand in operands)
        return instruction.main_bytes - given + (part if given else 0)
    return instruction.main_bytes + (given if instruction.opcode not in _NAMES_ITS_OPERANDS else 0)


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


def _trips(computations: _Computations, loop: _Instruction) -> int:
    """Return how often a loop runs: as the compiler notes it, or from `i < N` in its condition."""
    noted = re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', loop.text)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
    inside = computations.get(condition[1], {}) if condition else {}
    limits = [re.match(r"(\d+)\)", i.text) for i in inside.values() if i.opcode == "constant"]
    found = [int(limit[1]) for limit in limits if limit]
    return found[0] if len(found) == 1 else 1


def _parse(text: str) -> tuple[_Computations, str | None]:
    """Return {computation: {instruction: what it is}} and the name of the entry."""
    computations: _Computations = {}
    entry, current = None, None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if header and " = " not in line.split("(", 1)[0]:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
            continue
        found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)
        if current is None or not found:
            continue
        # A result's type holds no " word(": the first one is the opcode.
        opcode = re.search(r" ([a-z][\w\-]*)\(", " " + found[2])
        if not opcode:
            continue
        shape, rest = found[2][: opcode.start()], found[2][opcode.end() - 1 :]
        operands = re.findall(r"%([\w.\-]+)", _arguments(rest))
        sizes = _shape_bytes(shape), _shape_bytes(_ELSEWHERE.sub("", shape))
        current[found[1]] = _Instruction(opcode[1], *sizes, operands, rest)
    return computations, entry


def _arguments(rest: str) -> str:
    """Return what stands before the parenthesis that closes the arguments."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return rest[:i]
    return rest


def _shape_bytes(shape: str) -> int:
    total = 0
    for kind, sizes in re.findall(r"([a-z]+\d*\w*)\[([\d,]*)\]", shape):
        width = _BYTES.get(kind, 1 if kind.startswith("f8") else 0)
        total += width * math.prod(int(size) for size in sizes.split(",") if size)
    return total
