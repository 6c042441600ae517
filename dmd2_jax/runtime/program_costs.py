"""What a program costs: FLOPs from its jaxpr, bytes and collectives from its compiled text.

The compiler's own cost analysis counts the body of a loop once; both readers here count it as
often as it runs.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core as jex
from jax.interpreters.partial_eval import dce_jaxpr

__all__ = ["Collective", "ProgramCosts", "jaxpr_flops", "read_program"]

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
_NAMES_ITS_OPERANDS = frozenset({"copy-start", "all-gather-start", "collective-permute-start"})

# An array outside of the main memory, as a TPU program's text has it: f32[8,128]{1,0:T(8,128)S(1)}
_ELSEWHERE = re.compile(r"[a-z]\w*\[[\d,]*\]\{[^{}]*S\([1-9]\d*\)[^{}]*\}")


class Collective(NamedTuple):
    """All collectives of one kind: how many run in one execution, and their result bytes."""

    number: int
    num_bytes: int


class ProgramCosts(NamedTuple):
    """What one execution costs one device.

    Attributes:
      num_bytes: bytes that instructions read and write in the device's main memory: fused
        instructions count once, what the compiler holds in a chip's fast memory does not count. An
        upper bound, since an instruction need not read all of an operand (a slice of it, say).
      collectives: by kind, for example "all-reduce".
    """

    num_bytes: int
    collectives: dict[str, Collective]


def jaxpr_flops(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> float:
    """Count the floating-point operations of a traced program, loops as often as they run.

    A product of matrices or a convolution counts 2 for each multiply-add, anything else that
    computes 1 for each element of its largest operand or result. What nothing depends on, such as
    the gradients of weights that do not train, does not count: no compiler keeps it.

    Args:
      jaxpr: from `jax.make_jaxpr(f)(...)` or `jax.jit(f).trace(...).jaxpr`.

    Returns:
      FLOPs of all devices together.
    """
    plain: Any = getattr(jaxpr, "jaxpr", jaxpr)
    needed, _ = dce_jaxpr(plain, [True] * len(plain.outvars), instantiate=True)
    return _flops(needed)


def _flops(jaxpr: Any) -> float:
    plain = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation_flops(equation) for equation in plain.eqns)


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return params["length"] * _flops(params["jaxpr"])
    if name == "cond":
        return max(_flops(branch) for branch in params["branches"])
    inner = list(_inner_jaxprs(params))
    if inner:
        return sum(_flops(one) for one in inner)
    if name == "dot_general":
        return _dot_flops(equation)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    if name in _MOVES:
        return 0.0
    return float(max((_size(v) for v in (*equation.invars, *equation.outvars)), default=0))


_MOVES = frozenset(
    {
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "dynamic_slice",
        "dynamic_update_slice",
        "gather",
        "iota",
        "pad",
        "reshape",
        "rev",
        "select_n",
        "sharding_constraint",
        "slice",
        "split",
        "squeeze",
        "stop_gradient",
        "transpose",
    }
)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    # Calls (jit, remat, custom gradients, while) hold what they run under several names; a custom
    # gradient's rules are functions, not jaxprs, so nothing is counted twice.
    for value in params.values():
        if isinstance(value, jex.Jaxpr | jex.ClosedJaxpr):
            yield value


def _size(variable: Any) -> int:
    return int(np.prod(getattr(variable.aval, "shape", ()), dtype=np.int64))


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)


def _convolution_flops(equation: Any) -> float:
    params = equation.params
    numbers = params["dimension_numbers"]
    lhs, rhs = (v.aval.shape for v in equation.invars[:2])
    out = equation.outvars[0].aval.shape
    taps = 1.0
    for i, (low, _) in enumerate(params["padding"]):
        taps *= _valid_taps(
            size=lhs[numbers.lhs_spec[2 + i]],
            out=out[numbers.out_spec[2 + i]],
            kernel=rhs[numbers.rhs_spec[2 + i]],
            stride=params["window_strides"][i],
            low=low,
            lhs_dilation=params["lhs_dilation"][i],
            rhs_dilation=params["rhs_dilation"][i],
        )
    channels_in = rhs[numbers.rhs_spec[1]]  # of one group
    batch, channels_out = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return 2.0 * batch * channels_out * channels_in * taps / params["batch_group_count"]


def _valid_taps(
    *, size: int, out: int, kernel: int, stride: int, low: int, lhs_dilation: int, rhs_dilation: int
) -> int:
    """Count, along one axis, the pairs (output, tap) that meet an element: no padding, no hole."""
    outputs = np.arange(out)[:, None] * stride - low
    position = outputs + np.arange(kernel)[None] * rhs_dilation
    inside = (position >= 0) & (position < (size - 1) * lhs_dilation + 1)
    return int(np.sum(inside & (position % lhs_dilation == 0)))


class _Instruction(NamedTuple):
    opcode: str
    num_bytes: int
    main_bytes: int  # of num_bytes, those in the main memory
    operands: list[str]
    text: str


def read_program(text: str) -> ProgramCosts:
    """Read bytes and collectives off a compiled program's text.

    Args:
      text: from `compiled.as_text()`: the program of one device.

    Returns:
      The costs of one execution.

    Raises:
      ValueError: if the text is no HLO module with an entry.
    """
    computations, entry = _parse(text)
    if entry is None:
        raise ValueError(
            f"the program's text has no ENTRY ({text[:60]!r}...), expected compiled.as_text()."
        )
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    total = _walk(computations, entry, 1, counts)
    return ProgramCosts(total, {kind: Collective(*pair) for kind, pair in sorted(counts.items())})


def _walk(
    computations: dict[str, dict[str, _Instruction]],
    name: str,
    times: int,
    counts: dict[str, list[int]],
) -> int:
    """Return the bytes of `times` runs of one computation, adding its collectives to `counts`."""
    total = 0
    instructions = computations.get(name, {})
    for instruction in instructions.values():
        opcode = instruction.opcode.removesuffix("-start")
        operands = [instructions[name] for name in instruction.operands if name in instructions]
        if opcode in COLLECTIVES:
            counts[opcode][0] += times
            counts[opcode][1] += times * instruction.num_bytes
            if instruction.opcode in _NAMES_ITS_OPERANDS:
                counts[opcode][1] -= times * sum(operand.num_bytes for operand in operands)
        if instruction.opcode == "while":
            body = re.search(r"body=%?([\w.\-]+)", instruction.text)
            if body:
                inner = times * _trips(computations, instruction)
                total += _walk(computations, body[1], inner, counts)
        elif instruction.opcode in ("call", "conditional", "async-start"):
            for called in re.findall(
                r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)",
                instruction.text,
            ):
                total += _walk(computations, called, times, counts)
        if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
            continue
        total += times * instruction.main_bytes
        if instruction.opcode not in _NAMES_ITS_OPERANDS:
            total += times * sum(operand.main_bytes for operand in operands)
    return total


def _trips(computations: dict[str, dict[str, _Instruction]], loop: _Instruction) -> int:
    """Return how often a loop runs: as the compiler notes it, or from `i < N` in its condition."""
    noted = re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', loop.text)
    if noted:
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
    inside = computations.get(condition[1], {}) if condition else {}
    limits = [re.match(r"(\d+)\)", i.text) for i in inside.values() if i.opcode == "constant"]
    found = [int(limit[1]) for limit in limits if limit]
    return found[0] if len(found) == 1 else 1


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str | None]:
    """Return {computation: {instruction: what it is}} and the name of the entry."""
    computations: dict[str, dict[str, _Instruction]] = {}
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
