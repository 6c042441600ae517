"""The mesh, and what lies where on it."""

import os
import subprocess
import sys
import textwrap

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
    code = """
        import jax, numpy as np
        from dmd2_jax.runtime.sharding import check_batch_size, make_mesh, replicate, shard_batch
        mesh = make_mesh({"data": -1})
        x = shard_batch(np.arange(32.0).reshape(2, 16), mesh, axis=1)
        assert [s.data.shape for s in x.addressable_shards] == [(2, 2)] * 8
        w = replicate(np.arange(3.0), mesh)
        assert [s.data.shape for s in w.addressable_shards] == [(3,)] * 8
        assert float(jax.jit(lambda x, w: (x.sum() * w).sum())(x, w)) == 496 * 3
        for size, remedy in ((12, 16), (3, 8), (0, 8), (22, 24)):
            try:
                check_batch_size(size, mesh)
                raise SystemExit(f"{size} was accepted")
            except ValueError as error:
                expected = f"batch_size={size} must be divisible by data shards=8; try {remedy}."
                assert str(error) == expected, error
        print("DONE")
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout == "DONE\n", done.stderr


def test_check_batch_size_accepts_multiples() -> None:
    check_batch_size(4, make_mesh({"data": 1}))


def test_replicate_keeps_the_values() -> None:
    tree = replicate({"w": np.arange(3.0)}, make_mesh({"data": 1}))
    np.testing.assert_array_equal(np.asarray(tree["w"]), np.arange(3.0))
