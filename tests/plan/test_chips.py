"""Chips by the names of slices and of devices: which exist, and what somebody meant."""

import re
from types import SimpleNamespace

import jax
import pytest

from dmd2_jax.plan.chips import CHIPS, chip_of, nearest, num_chips, topology


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("v5e:3x5", ["v5e:4x4", "v5e:2x4", "v5e:4x8"]),  # 15 chips: 16, then 8 and 32
        ("v5e:4x4x4", ["v5e:8x8", "v5e:4x8", "v5e:8x16"]),
        ("v5litepod-16", ["v5e:4x4", "v5e:2x4", "v5e:4x8"]),
        ("v5e-16", ["v5e:4x4", "v5e:2x4", "v5e:4x8"]),
        ("v5p-128", ["v5p:4x4x4", "v5p:2x4x4", "v5p:4x4x8"]),  # TensorCores
        ("v5p:128", ["v5p:4x4x8", "v5p:4x4x4", "v5p:4x8x8"]),  # chips
        ("v5p:4x2x2", ["v5p:2x2x4", "v5p:2x2x2", "v5p:2x4x4"]),
        ("v7:2x2", ["tpu7x:2x2x1", "tpu7x:2x2x2", "tpu7x:2x2x4"]),
        ("V5E:4x4", ["v5e:4x4", "v5e:2x4", "v5e:4x8"]),
        ("TPU v6e 4x4", ["v6e:4x4", "v6e:2x4", "v6e:4x8"]),
        ("v5:4x4", ["v5e:4x4", "v5p:2x2x4", "v5e:2x4"]),
        ("v5e:", ["v5e:1x1", "v5e:2x2", "v5e:2x4"]),
        ("h100", ["v5e:1x1", "v6e:1x1", "v4:2x2x1"]),
    ],
)
def test_nearest_understands_other_names(name: str, meant: list[str]) -> None:
    assert nearest(name) == meant


@pytest.mark.parametrize("kind", CHIPS)
def test_nearest_of_a_slice_is_itself(kind: str) -> None:
    for shape in CHIPS[kind].shapes:
        assert nearest(f"{kind}:{shape}", count=1) == [f"{kind}:{shape}"]


@pytest.mark.parametrize(
    "name", ["v5p:2x2x3", "v5p:12x4x4", "v5p:99x99x99", "v6e:4x4x4", "v5e:32x32", "v5e:0x4", "a\nb"]
)
def test_topology_refuses_a_slice_that_is_not_sold(name: str) -> None:
    message = f"topology={name}, expected CHIP:SHAPE"
    with pytest.raises(ValueError, match=re.escape(message)):
        topology(name)


def test_topology_takes_large_slices_of_cubes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ValueError, match="v5p:4x4x12 needs the package libtpu"):
        topology("v5p:4x4x12")


@pytest.mark.parametrize(
    ("device_kind", "name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM", 989e12),
        ("NVIDIA H200", "H200 SXM", 989e12),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB SXM", 312e12),
        ("NVIDIA L4", "L4", 121e12),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 165.2e12),
        ("TPU v5 lite", "TPU v5e", 197e12),
        ("TPU v5", "TPU v5p", 459e12),
    ],
)
def test_chip_of_knows_what_jax_calls_it(device_kind: str, name: str, flops: float) -> None:
    chip = chip_of(device_kind)
    assert chip is not None
    assert (chip.name, chip.flops) == (name, flops)


@pytest.mark.parametrize(
    "device_kind",
    [
        "cpu",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
)
def test_chip_of_knows_no_peaks_of_others(device_kind: str) -> None:
    assert chip_of(device_kind) is None


def test_num_chips_counts_two_cores_of_a_chip_once() -> None:
    places = [(x, y, 0) for x in range(2) for y in range(2) for _ in range(2)]
    cores = [SimpleNamespace(platform="tpu", coords=place) for place in places]
    assert num_chips(cores) == 4
    assert num_chips(jax.devices()) == 8  # a CPU's have no place


@pytest.mark.parametrize("kind", CHIPS)
def test_chips_are_those_of_tpus_compiler(kind: str) -> None:
    pytest.importorskip("libtpu", reason="libtpu, TPU's compiler, is not installed (not in CI)")
    smallest = CHIPS[kind].shapes[1] if kind in ("v5e", "v6e") else CHIPS[kind].shapes[0]
    chip, devices = topology(f"{kind}:{smallest}")
    assert chip_of(devices[0].device_kind) == chip
    # The largest program that it takes, to 1 %: it is refused with a little more.
    whole = jax.sharding.Mesh(devices, ("d",))
    replicated = jax.sharding.NamedSharding(whole, jax.sharding.PartitionSpec())

    def compile_one_that_takes(num_bytes: float) -> None:
        shape = (int(num_bytes / 2**21), 2**10, 2**8)  # in and out, 4 bytes each
        x = jax.ShapeDtypeStruct(shape, "float32", sharding=replicated)
        jax.jit(lambda x: 2 * x).lower(x).compile()

    limit = chip.memory * num_chips(devices) / len(devices)
    compile_one_that_takes(0.995 * limit)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        compile_one_that_takes(1.005 * limit)


def test_chip_of_v4_is_one_device() -> None:
    pytest.importorskip("libtpu", reason="libtpu, TPU's compiler, is not installed (not in CI)")
    assert len(topology("v4:2x2x1")[1]) == 4
