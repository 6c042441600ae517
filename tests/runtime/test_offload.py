"""What may wait in the host's memory, on devices that have one and on others."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.runtime.offload import check_offload, fetched, put_back
from dmd2_jax.runtime.sharding import make_mesh, replicated


def mesh_of(*kinds: str) -> Any:
    memories = [SimpleNamespace(kind=kind) for kind in kinds]
    device = SimpleNamespace(device_kind="oldchip", addressable_memories=lambda: memories)
    return SimpleNamespace(devices=np.array([device]))


def test_check_offload_refuses_devices_without_the_hosts_memory() -> None:
    with pytest.raises(ValueError, match="'pinned_host', which oldchip does not have"):
        check_offload(("teacher",), ("teacher",), mesh_of("device", "unpinned_host"))


def test_check_offload_asks_for_nothing_where_nothing_is_offloaded() -> None:
    check_offload((), ("teacher",), mesh_of("device"))
    check_offload(("teacher",), ("teacher",), mesh_of("device", "pinned_host"))


def test_fetched_and_put_back_move_only_what_lies_on_the_host() -> None:
    here = replicated(make_mesh({"data": 1}))
    tree = {
        "near": jax.device_put(jnp.ones(2), here),
        "far": jax.device_put(jnp.ones(2), here.with_memory_kind("pinned_host")),
    }

    def spaces(tree: Any) -> dict[str, str]:
        return {name: str(jax.typeof(leaf).memory_space) for name, leaf in tree.items()}

    seen = []

    @jax.jit
    def double(tree: Any) -> Any:
        new = jax.tree.map(lambda x: 2 * x, fetched(tree))
        seen.extend([spaces(fetched(tree)), spaces(put_back(new, tree))])
        return new

    np.testing.assert_array_equal(double(tree)["far"], [2, 2])
    assert [set(seen[0].values()), seen[1]] == [{"MemorySpace.Device"}, spaces(tree)]
    assert spaces(tree) == {"near": "MemorySpace.Device", "far": "MemorySpace.Host"}


PROCESS = """
import sys
import jax, numpy as np
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
from dmd2_jax.runtime import distributed
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.runtime.offload import host_shardings
from dmd2_jax.runtime.sharding import make_mesh, tree_shardings
mesh, gather = make_mesh({"data": 2, "fsdp": 2}), distributed.multihost_utils.process_allgather

def gathered(leaf, **options):
    # A CPU would gather from the host's memory too, accelerators not.
    place = getattr(leaf, "sharding", mesh)  # Orbax compares numbers in this way, too
    assert place is mesh or place.memory_kind == "device", place
    return gather(leaf, **options)

distributed.multihost_utils.process_allgather = gathered
tree = {"w": np.random.RandomState(0).randn(64, 64), "odd": np.ones((63, 65)), "b": np.ones(3)}
tree = {name: array.astype(np.float32) for name, array in tree.items()}
near = tree_shardings(tree, mesh)
far = host_shardings(tree, near)
state = distributed.put(tree, far)
moved = distributed.put(distributed.put(state, near), far)  # there and back
with Checkpoints(sys.argv[3]) as checkpoints:
    checkpoints.save(1, moved)
    checkpoints.wait()
    template = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), moved, far
    )
    restored = checkpoints.restore(template).state
for it in (state, moved, restored):
    assert [it[name].sharding.memory_kind for name in ("w", "odd")] == ["pinned_host"] * 2
    for name, array in distributed.to_host(it).items():
        np.testing.assert_array_equal(array, tree[name])
print("same")
"""


def test_two_processes_save_what_waits_on_the_host(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(number), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
            cwd=Path(__file__).resolve().parents[2],
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all(output.endswith("same\n") for output in outputs), outputs
