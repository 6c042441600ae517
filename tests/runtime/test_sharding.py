"""The mesh, and what lies where on it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dmd2_jax.runtime.sharding import check_batch_size, make_mesh, replicate, shard_batch

ROOT = Path(__file__).resolve().parents[2]


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


PROCESS = """
import sys
import jax, numpy as np
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
from dmd2_jax.data import ImageDataset, batches_from, process_rows
from dmd2_jax.runtime.sharding import make_mesh, shard_batch
numbers = np.arange(40)
images = np.broadcast_to(numbers[:, None, None, None], (40, 2, 2, 1)).astype(np.uint8)
dataset = ImageDataset(images, numbers.astype(np.int32), 40, "toy")
rows = process_rows(8, jax.process_index(), jax.process_count())
read = batches_from(dataset, 16, 3, batch_size=8, seed=5, rows=rows)
mesh = make_mesh({"data": -1})
batch = shard_batch(read, mesh, axis=1)
assert batch["image"].shape == (3, 8, 2, 2, 1), batch["image"].shape
whole = batches_from(dataset, 16, 3, batch_size=8, seed=5)
for name, array in batch.items():
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[name][shard.index])
print("same")
"""


def test_shard_batch_of_two_processes_is_the_batch_of_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all(output.endswith("same\n") for output in outputs)
