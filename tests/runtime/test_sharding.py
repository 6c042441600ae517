"""The mesh, and what lies where on it."""

import jax
import numpy as np
import pytest

from dmd2_jax.runtime.sharding import check_batch_size, make_mesh, replicate, shard_batch


def test_make_mesh_has_three_named_axes() -> None:
    mesh = make_mesh({"data": -1})
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("data", [0, -2, 4096])
def test_make_mesh_refuses_devices_that_are_not_there(data: int) -> None:
    with pytest.raises(ValueError, match=rf"config.mesh.data={data} devices, expected -1 \(all\)"):
        make_mesh({"data": data})


def test_shard_batch_keeps_the_values() -> None:
    mesh = make_mesh({"data": 1})
    batch = {"x": np.arange(12.0).reshape(2, 3, 2), "none": None}
    sharded = shard_batch(batch, mesh, axis=1)
    np.testing.assert_array_equal(np.asarray(sharded["x"]), batch["x"])
    assert sharded["none"] is None


def test_batches_split_over_eight_devices_and_parameters_do_not() -> None:
    mesh = make_mesh({"data": 8})
    x = shard_batch(np.arange(32.0).reshape(2, 16), mesh, axis=1)
    assert [shard.data.shape for shard in x.addressable_shards] == [(2, 2)] * 8
    w = replicate(np.arange(3.0), mesh)
    assert [shard.data.shape for shard in w.addressable_shards] == [(3,)] * 8


@pytest.mark.parametrize(("size", "remedy"), [(12, 16), (3, 8), (0, 8), (22, 24)])
def test_check_batch_size_names_the_nearest_that_fits(size: int, remedy: int) -> None:
    with pytest.raises(ValueError, match="batch_size") as caught:
        check_batch_size(size, make_mesh({"data": 8}))
    expected = f"batch_size={size} must be divisible by data shards=8; try {remedy}."
    assert str(caught.value) == expected


def test_check_batch_size_accepts_multiples() -> None:
    check_batch_size(24, make_mesh({"data": 8}))


def test_replicate_keeps_the_values() -> None:
    tree = replicate({"w": np.arange(3.0)}, make_mesh({"data": 1}))
    np.testing.assert_array_equal(np.asarray(tree["w"]), np.arange(3.0))
