"""What may wait in the host's memory, on devices that have one and on others."""

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
