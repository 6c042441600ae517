"""The mesh, and what lies where on it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dmd2_jax.runtime.gathering import gather
from dmd2_jax.runtime.sharding import (
    Rules,
    check_batch_size,
    check_rules,
    like_params,
    make_mesh,
    partition_spec,
    replicate,
    shard_batch,
    tree_shardings,
)

ROOT = Path(__file__).resolve().parents[2]


def test_make_mesh_has_three_named_axes() -> None:
    mesh = make_mesh({"data": -1})
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"data": -1, "fsdp": 4}, (2, 4, 1)),
        ({"data": 2, "fsdp": 2, "tensor": -1}, (2, 2, 2)),
        ({"data": 2}, (2, 1, 1)),  # the others idle
    ],
)
def test_make_mesh_gives_the_rest_to_minus_one(sizes: dict, shape: tuple) -> None:
    assert tuple(make_mesh(sizes).shape.values()) == shape


@pytest.mark.parametrize(
    "sizes", [{"data": 4096}, {"data": -1, "fsdp": 3}, {"data": 2, "fsdp": 2, "tensor": 4}]
)
def test_make_mesh_refuses_devices_that_are_not_there(sizes: dict) -> None:
    with pytest.raises(ValueError, match="expected a mesh for the 8 cpu devices here"):
        make_mesh(sizes)


@pytest.mark.parametrize(
    ("sizes", "remedy"),
    [
        ({"data": 3}, "takes 3 devices.*try data=4, fsdp=1, tensor=1,"),
        ({"data": 3, "fsdp": 4}, "takes 12 devices.*try data=2, fsdp=4, tensor=1,"),
        ({"data": -1, "fsdp": 3}, "a multiple of 3 devices.*try data=-1, fsdp=4, tensor=1,"),
        ({"data": 4096}, "try data=8, fsdp=1, tensor=1,.*CUDA_VISIBLE_DEVICES"),
    ],
)
def test_make_mesh_refuses_to_leave_an_odd_rest_and_names_the_nearest(
    sizes: dict, remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy):
        make_mesh(sizes)


def test_make_mesh_takes_the_devices_it_is_given() -> None:
    chosen = jax.devices()[2:5]
    assert list(make_mesh({"data": 3}, chosen).devices.flat) == chosen
    with pytest.raises(ValueError, match="expected a mesh for the 3 cpu devices here"):
        make_mesh({"data": 2}, chosen)


@pytest.mark.parametrize("sizes", [{"data": 0}, {"data": -2}, {"data": -1, "fsdp": -1}])
def test_make_mesh_refuses_sizes_that_make_no_mesh(sizes: dict) -> None:
    with pytest.raises(ValueError, match="expected sizes of at least 1 and at most one -1"):
        make_mesh(sizes)


def spec(shape: tuple[int, ...], sizes: dict, path: str = "w", rules: Rules = ()) -> tuple:
    return tuple(partition_spec(path, shape, make_mesh(sizes), rules))


MIXED = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("shape", "sizes", "expected"),
    [
        ((3, 3, 64, 32), {"fsdp": 4}, (None, None, "fsdp", None)),  # the largest axis
        ((3, 3, 64, 128), MIXED, (None, None, "fsdp", "tensor")),
        ((4096,), MIXED, ("fsdp",)),  # vectors have no output features
        ((3, 3, 63, 31), MIXED, (None, None, None, None)),  # nothing divides
        ((3, 3, 63, 64), MIXED, (None, None, None, "tensor")),
        ((8, 8), MIXED, (None, None)),  # too small to be worth it
        ((256, 256), {"data": 8}, (None, None)),
    ],
)
def test_partition_spec_by_default(shape: tuple, sizes: dict, expected: tuple) -> None:
    assert spec(shape, sizes) == expected


def test_partition_spec_takes_the_first_rule_that_matches() -> None:
    rules = ((r"head/kernel$", (None, "fsdp")), (r"kernel", ("fsdp", None)))
    assert spec((64, 64), {"fsdp": 2}, "a/head/kernel", rules) == (None, "fsdp")
    assert spec((64, 64), {"fsdp": 2}, "a/body/kernel", rules) == ("fsdp", None)
    assert spec((64, 64), {"fsdp": 2}, "a/body/other", rules) == ("fsdp", None)


@pytest.mark.parametrize(("shape", "axes"), [((63, 64), ("fsdp", None)), ((64,), (None, "fsdp"))])
def test_partition_spec_refuses_a_rule_that_does_not_fit(shape: tuple, axes: tuple) -> None:
    with pytest.raises(ValueError, match=r"does not fit w of shape"):
        spec(shape, {"fsdp": 2}, rules=(("w", axes),))


@pytest.mark.parametrize(
    ("rules", "sizes", "message"),
    [
        ((("w", ("model", None)),), {"fsdp": 2}, r"names \['model'\]"),
        ((("nothing", ("fsdp", None)),), {"fsdp": 2}, "no parameter's path matches 'nothing'"),
        ((("w", (None, None)),), {"fsdp": 2}, "no parameter is split over it"),
    ],
)
def test_check_rules_refuses(rules: Rules, sizes: dict, message: str) -> None:
    tree = {"w": jax.ShapeDtypeStruct((64, 64), np.float32)}
    with pytest.raises(ValueError, match=message):
        check_rules(rules, tree, make_mesh(sizes))


def test_check_rules_finds_a_match_in_any_network() -> None:
    teacher, head = ({name: jax.ShapeDtypeStruct((64, 64), np.float32)} for name in ("w", "head"))
    mesh, rules = make_mesh({"fsdp": 2}), (("^head$", ("fsdp", None)),)
    check_rules(rules, teacher, mesh, head)
    with pytest.raises(ValueError, match=r"no parameter's path matches '\^head\$'.*example 'w'"):
        check_rules(rules, teacher, mesh)


def test_like_params_puts_moments_where_anchored_rules_put_their_parameters() -> None:
    params = {"w": jnp.ones((64, 64)), "v": jnp.ones((64, 64)), "b": jnp.ones(64)}
    state = optax.chain(optax.scale_by_adam()).init(params)
    mesh, rules = make_mesh({"fsdp": 2}), (("^w$", (None, "fsdp")),)
    (found,) = like_params(state, params, mesh, rules)
    expected = {"w": (None, "fsdp"), "v": ("fsdp", None), "b": (None,)}
    for moment in (found.mu, found.nu, tree_shardings(params, mesh, rules)):
        assert {name: tuple(place.spec) for name, place in moment.items()} == expected
    assert tuple(found.count.spec) == ()


def test_gather_keeps_values_and_splits_gradients() -> None:
    mesh = make_mesh({"fsdp": 8})
    w = np.arange(64.0 * 64, dtype=np.float32).reshape(64, 64)
    sharded = jax.device_put({"w": w}, tree_shardings({"w": w}, mesh))

    def loss(params: dict) -> jax.Array:
        return (gather(params, mesh)["w"] ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(sharded)["w"]
    np.testing.assert_array_equal(gradient, 2 * w)
    assert {shard.data.shape for shard in gradient.addressable_shards} == {(8, 64)}


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
    check_batch_size(64, make_mesh({"data": 4, "fsdp": 2}), microbatches=8)


@pytest.mark.parametrize(("size", "parts", "remedy"), [(64, 16, 8), (48, 4, 3), (8, 2, 1)])
def test_check_batch_size_refuses_parts_that_do_not_split(
    size: int, parts: int, remedy: int
) -> None:
    with pytest.raises(ValueError, match="microbatches") as caught:
        check_batch_size(size, make_mesh({"data": 4, "fsdp": 2}), parts)
    assert str(caught.value) == (
        f"microbatches={parts} makes parts of {size // parts} out of batch_size={size}, expected "
        f"parts divisible by data shards=8; try microbatches={remedy}."
    )


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
