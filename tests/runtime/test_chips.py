"""Names of TPU slices: which exist, and what somebody meant."""

import re

import pytest

from dmd2_jax.runtime.chips import CHIPS, nearest, topology


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
    message = f"--topology={name}, expected CHIP:SHAPE"
    with pytest.raises(ValueError, match=re.escape(message)):
        topology(name)


def test_topology_takes_large_slices_of_cubes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(ValueError, match="v5p:4x4x12 needs TPU's compiler"):
        topology("v5p:4x4x12")
