"""The text of a compiled program, as computations of instructions.

Read are the forms of `compiled.as_text()` and of the files that XLA's `--xla_dump_to` writes, which
jaxlib 0.12 writes with `%name#2` for the third element of a tuple.
"""

import math
import re
from typing import NamedTuple

__all__ = ["Array", "Computations", "Instruction", "read_text"]

_BYTES = {
    "pred": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "f64": 8,
    "c64": 8,
    "c128": 16,
} | {f"{kind}{bits}": max(1, bits // 8) for kind in "su" for bits in (2, 4, 8, 16, 32, 64)}

# An array, as a TPU program's text has it: f32[8,128]{1,0:T(8,128)S(1)}, with the place of one that
# is outside of the main memory.
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?")
_ELSEWHERE = re.compile(r"S\([1-9]\d*\)")


class Array(NamedTuple):
    """One array.

    Attributes:
      num_bytes: of it, without padding.
      is_main: whether it is in the main memory, not in a chip's fast one.
    """

    num_bytes: int
    is_main: bool


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
      opcode: what it does.
      arrays: its results; of some that start something, the operands too.
      operands: names of instructions of the same computation.
      text: all behind the parenthesis that opens its arguments.
      is_root: whether its result is its computation's.
    """

    opcode: str
    arrays: list[Array]
    operands: list[str]
    text: str
    is_root: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of its results."""
        return sum(array.num_bytes for array in self.arrays)

    @property
    def main_bytes(self) -> int:
        """Bytes of its results that are in the main memory."""
        return sum(array.num_bytes for array in self.arrays if array.is_main)


Computations = dict[str, dict[str, Instruction]]


def read_text(text: str) -> tuple[Computations, str | None]:
    """Return {computation: {instruction: what it is}} and the name of the entry."""
    computations: Computations = {}
    entry, current = None, None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if header and " = " not in line.split("(", 1)[0]:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
            continue
        found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$", line)
        if current is None or not found:
            continue
        # A result's type holds no " word(": the first one is the opcode.
        opcode = re.search(r" ([a-z][\w\-]*)\(", " " + found[3])
        if not opcode:
            continue
        shape, rest = found[3][: opcode.start()], found[3][opcode.end() - 1 :]
        operands = re.findall(r"%([\w.\-]+(?:#\d+)?)", _arguments(rest))
        for operand in operands:
            _add_element(current, operand)
        current[found[2]] = Instruction(opcode[1], _arrays(shape), operands, rest, bool(found[1]))
    return computations, entry


def _add_element(instructions: dict[str, Instruction], operand: str) -> None:
    """Add what `name#2` stands for: the instruction that takes it out of the tuple."""
    name, _, index = operand.partition("#")
    if index and operand not in instructions and name in instructions:
        arrays = instructions[name].arrays[int(index) : int(index) + 1]
        instructions[operand] = Instruction("get-tuple-element", arrays, [name], "", False)


def _arguments(rest: str) -> str:
    """Return what stands before the parenthesis that closes the arguments."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return rest[:i]
    return rest


def _arrays(shape: str) -> list[Array]:
    """Return the arrays of a type as it is written, those of a tuple one by one."""
    arrays = []
    for kind, sizes, layout in _ARRAY.findall(shape):
        width = _BYTES.get(kind, 1 if kind.startswith("f8") else 0)
        num_bytes = width * math.prod(int(size) for size in sizes.split(",") if size)
        arrays.append(Array(num_bytes, not _ELSEWHERE.search(layout)))
    return arrays
