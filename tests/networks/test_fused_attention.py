import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dmd2_jax.networks import fused_attention
from dmd2_jax.networks.attention import attention
from dmd2_jax.runtime.sharding import BATCH_AXES, make_mesh

SMALL = {"_TPUS": frozenset({"cpu"}), "_MIN_WEIGHTS": 1, "_TILE": 128}


@pytest.fixture
def on_cpu(monkeypatch):
    """Let the kernel run here, interpreted, in tiles that make short sequences several."""
    for name, value in SMALL.items():
        monkeypatch.setattr(fused_attention, name, value)


def arrays(queries, keys, heads=2, size=16, dtype=jnp.float32, batch=4):
    lengths = (queries, keys, keys, queries)
    draws = zip(jax.random.split(jax.random.key(0), 4), lengths, strict=True)
    return [jax.random.normal(k, (batch, n, heads, size)).astype(dtype) for k, n in draws]


def both(q, k, v, g):
    out, pull = jax.vjp(attention, q, k, v)
    return out, *pull(g)


def on_mesh(q, k, v, g, **sizes):
    mesh = make_mesh(sizes)
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def run(*given):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return both(*given)

    program = jax.jit(run, in_shardings=split)
    return program(q, k, v, g), str(program.trace(q, k, v, g).jaxpr)


@pytest.mark.parametrize(
    ("queries", "keys", "dtype", "tolerance"),
    [
        (256, 256, jnp.float32, 1e-5),
        (200, 140, jnp.float32, 1e-5),  # padded
        (256, 256, jnp.bfloat16, 2**-7),
    ],
)
def test_the_kernel_on_a_mesh_equals_the_plain_formula(on_cpu, queries, keys, dtype, tolerance):
    given = arrays(queries, keys, dtype=dtype)
    plain = both(*given)
    fused, program = on_mesh(*given, data=2, fsdp=2, tensor=2)
    assert "pallas_call" in program
    for ours, theirs in zip(fused, plain, strict=True):
        assert ours.dtype == dtype
        difference = ours.astype(jnp.float32) - theirs.astype(jnp.float32)
        np.testing.assert_array_less(jnp.abs(difference), tolerance)


@pytest.mark.parametrize(
    "given",
    [
        {"queries": 256, "keys": 77},  # fewer keys than a tile
        {"queries": 256, "keys": 256, "heads": 3},  # which tensor=2 does not divide
        {"queries": 256, "keys": 256, "batch": 3},
        {"queries": 128, "keys": 128, "size": 512},  # a larger head than the kernel was built for
    ],
)
def test_attention_falls_back_to_the_plain_formula(on_cpu, given):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = str(jax.make_jaxpr(both)(*arrays(**given)))
    assert "pallas_call" not in program


def test_attention_without_a_mesh_is_plain(on_cpu):
    assert "pallas_call" not in str(jax.make_jaxpr(both)(*arrays(256, 256)))
