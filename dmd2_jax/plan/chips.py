"""Accelerators and their published peaks: TPUs, also those that are not there, and GPUs."""

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax

from dmd2_jax.config.refused import Refused, lacks

__all__ = ["CHIPS", "Chip", "chip_of", "nearest", "num_chips", "topology"]


class Chip(NamedTuple):
    """One accelerator chip's published peak figures.

    Attributes:
      name: for people.
      flops: bfloat16 FLOP/s.
      memory: bytes of high-bandwidth memory that a program may take.
      memory_bandwidth: bytes/s.
      link_bandwidth: bytes/s that all its links to other chips send together.
      shapes: slices that are sold, as the topology's sizes; () where there are none.
    """

    name: str
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    shapes: tuple[str, ...] = ()


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

# As Google Cloud's TPU documentation states them; checked there in 2026-11: v5e and v6e. It gives
# links in both directions together, of which this is half. The memory is what TPU's compiler lets a
# program take of the 32, 16, 96, 32 and 192 GiB there are: libtpu 0.0.52 refuses larger ones with
# "exceeds available HBM (15.75G)". For TPU7x that is of a core, of which a chip has two.
_GIB = 2**30
CHIPS = {
    "v4": Chip("TPU v4", 275e12, 30.75 * _GIB, 1228e9, 300e9, _CUBE),
    "v5e": Chip("TPU v5e", 197e12, 15.75 * _GIB, 819e9, 200e9, _FLAT),
    "v5p": Chip("TPU v5p", 459e12, 95.73 * _GIB, 2765e9, 600e9, _CUBE),
    "v6e": Chip("TPU v6e", 918e12, 31.24 * _GIB, 1638e9, 400e9, _FLAT),
    "tpu7x": Chip("TPU7x", 2307e12, 2 * 94.74 * _GIB, 7370e9, 600e9, _CUBE),
}
"""Name in a topology, such as "v5p" of "v5p:4x4x4" -> the chip."""

# JAX's names of the chips above: `jax.devices()[0].device_kind`.
_TPUS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}

# By JAX's names, which are the driver's. From NVIDIA's data sheets of "H100 Tensor Core GPU", "H200
# Tensor Core GPU", "HGX B200", "A100 Tensor Core GPU", "L4", "L40S" and "A10"; for GeForce from the
# whitepapers of the architectures Ada and GA102 (with 32-bit accumulation). Matrices without
# sparsity, half of a figure that is given with it; NVLink, or PCIe where there is none, in one
# direction, half of what is given for both. Not here: GPUs without bfloat16, parts of one (MIG).
_GPUS = {
    "NVIDIA H100 80GB HBM3": Chip("H100 SXM", 989e12, 80e9, 3350e9, 450e9),
    "NVIDIA H100 PCIe": Chip("H100 PCIe", 756e12, 80e9, 2000e9, 300e9),
    "NVIDIA H100 NVL": Chip("H100 NVL", 835e12, 94e9, 3900e9, 300e9),
    "NVIDIA H200": Chip("H200 SXM", 989e12, 141e9, 4800e9, 450e9),
    "NVIDIA B200": Chip("B200", 2250e12, 180e9, 7700e9, 900e9),
    "NVIDIA A100-SXM4-40GB": Chip("A100 40GB SXM", 312e12, 40e9, 1555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80GB SXM", 312e12, 80e9, 2039e9, 300e9),
    "NVIDIA A100-PCIE-40GB": Chip("A100 40GB PCIe", 312e12, 40e9, 1555e9, 300e9),
    "NVIDIA A100 80GB PCIe": Chip("A100 80GB PCIe", 312e12, 80e9, 1935e9, 300e9),
    "NVIDIA L4": Chip("L4", 121e12, 24e9, 300e9, 32e9),
    "NVIDIA L40S": Chip("L40S", 362e12, 48e9, 864e9, 32e9),
    "NVIDIA A10": Chip("A10", 125e12, 24e9, 600e9, 32e9),
    "NVIDIA GeForce RTX 4090": Chip("RTX 4090", 165.2e12, 24e9, 1008e9, 32e9),
    "NVIDIA GeForce RTX 3090": Chip("RTX 3090", 71e12, 24e9, 936e9, 56.2e9),
}

# The two cores of a v4 chip are one device ("megacore") on every slice that is sold; libtpu's own
# choice is a device a core.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}

_LARGEST = 9216  # chips of the largest pod there is, one of TPU7x

_OTHER_NAMES = {
    "v5": ("v5e", "v5p"),
    "v5lite": ("v5e",),
    "v5litepod": ("v5e",),
    "v6": ("v6e",),
    "trillium": ("v6e",),
    "tpu7": ("tpu7x",),
    "v7": ("tpu7x",),
    "v7x": ("tpu7x",),
    "ironwood": ("tpu7x",),
}


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip that JAX names, or None for a CPU and others without published peaks here.

    Args:
      device_kind: of a device, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite".
    """
    if device_kind in _TPUS:
        return CHIPS[_TPUS[device_kind]]
    return _GPUS.get(device_kind)


def num_chips(devices: Sequence[jax.Device]) -> int:
    """Return how many chips devices are of: a TPU's chip of two cores can be two devices.

    Args:
      devices: all of a machine or a slice.
    """
    places = {
        (getattr(device, "slice_index", 0), *device.coords)
        if device.platform == "tpu"
        else (device.id,)
        for device in devices
    }
    return len(places)


def topology(name: str) -> tuple[Chip, Sequence[jax.Device]]:
    """Return the chip and the devices of a TPU slice that need not be there.

    Args:
      name: for example "v5e:4x4" or "v5p:4x4x4".

    Returns:
      The chip, and devices that programs can be compiled for but not run on.

    Raises:
      ValueError: if there is no such topology (the nearest is named), or libtpu is not installed.
    """
    kind, _, shape = name.partition(":")
    if not _exists(kind, shape):
        raise Refused(
            f"topology={name}, expected CHIP:SHAPE with a chip of {sorted(CHIPS)} and a shape "
            f"that it is sold in; did you mean one of {nearest(name)}? `local` is this machine."
        )
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise Refused(
            f"{lacks(f'topology={name}', 'libtpu', 'plan')} (0.6 GB, with TPU's compiler; no TPU "
            "is needed)."
        )
    # libtpu asks a metadata server where it runs unless it is told.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **_OPTIONS.get(kind, {})
        )
    except Exception as error:
        raise Refused(
            f"topology={name} is refused by TPU's compiler ({str(error).splitlines()[0]}), "
            f"expected a slice that exists; did you mean one of {nearest(name)}?"
        ) from error
    return CHIPS[kind], found.devices


def nearest(name: str, count: int = 3) -> list[str]:
    """Return the slices that someone who wrote `name` most likely meant.

    Args:
      name: anything; names of accelerator types such as "v5litepod-16" are understood.
      count: how many.
    """
    words = name.strip().lower().removeprefix("tpu ")
    parted = re.fullmatch(r"(?s)([^:_ -]*)([:_ -]*)(.*)", words)
    assert parted is not None  # each of the three may be empty
    text, separator, rest = parted.groups()
    known = {kind: (kind,) for kind in CHIPS} | _OTHER_NAMES
    matches = [text] if text in known else difflib.get_close_matches(text, known, n=1)
    kinds = known[matches[0]] if matches else tuple(CHIPS)
    sizes = [int(size) for size in re.findall(r"[1-9]\d*", rest)]
    # Accelerator types of these count TensorCores, two a chip.
    cores = len(sizes) == 1 and separator == "-" and kinds in (("v4",), ("v5p",))
    chips = max(1, math.prod(sizes) // (2 if cores else 1))

    def distance(found: str) -> float:
        return abs(math.log(_num_chips(found.partition(":")[2]) / chips))

    # Sorting is stable: without sizes the smallest come first.
    names = [f"{kind}:{shape}" for kind in kinds for shape in CHIPS[kind].shapes]
    return sorted(names, key=distance)[:count]


def _num_chips(shape: str) -> int:
    return math.prod(int(size) for size in shape.split("x"))


def _exists(kind: str, shape: str) -> bool:
    """Return whether a slice is sold: one that is listed, or a larger one made of 4x4x4 cubes."""
    if kind not in CHIPS or shape in CHIPS[kind].shapes:
        return kind in CHIPS
    if CHIPS[kind].shapes is not _CUBE or not re.fullmatch(r"[1-9]\d?(x[1-9]\d?){2}", shape):
        return False
    sizes = [int(size) for size in shape.split("x")]
    cubes = sizes == sorted(sizes) and all(size % 4 == 0 for size in sizes)
    return cubes and _num_chips(shape) <= _LARGEST
