import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from dmd2_jax.distill import init_state, make_cycle
from dmd2_jax.networks import fused_attention
from dmd2_jax.networks.attention import attention
from dmd2_jax.plan.jaxpr_flops import jaxpr_flops
from dmd2_jax.recipe.placement import cycle_shardings, spread_players
from dmd2_jax.runtime.sharding import BATCH_AXES, make_mesh
from tests.distill import toy
from tests.distill.test_cycle import make_batch

SMALL = {"_TPUS": frozenset({"cpu"}), "_MIN_WEIGHTS": 1, "_TILE": 128}


@pytest.fixture
def on_cpu(monkeypatch):
    """Let the kernel run here, interpreted, in tiles that make short sequences several."""
    for name, value in SMALL.items():
        monkeypatch.setattr(fused_attention, name, value)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(fused_attention, "_MIN_LENGTH", 1)


def arrays(queries, keys, heads=2, size=16, dtype=jnp.float32, batch=4):
    lengths = (queries, keys, keys, queries)
    draws = zip(jax.random.split(jax.random.key(0), 4), lengths, strict=True)
    return [jax.random.normal(k, (batch, n, heads, size)).astype(dtype) for k, n in draws]


def both(q, k, v, g):
    out, pull = jax.vjp(attention, q, k, v)
    return out, *pull(g)


def on_mesh(function, *given):
    """Return what a function gives on eight devices, and its program."""
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def run(*given):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*given)

    program = jax.jit(run, in_shardings=split)
    return program(*given), str(program.trace(*given).jaxpr)


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
    fused, program = on_mesh(both, *given)
    assert "pallas_call" in program
    for ours, theirs in zip(fused, plain, strict=True):
        assert ours.dtype == dtype
        difference = ours.astype(jnp.float32) - theirs.astype(jnp.float32)
        np.testing.assert_array_less(jnp.abs(difference), tolerance)


@pytest.mark.parametrize(
    ("queries", "keys", "dtype", "tolerance"),
    [
        (256, 256, jnp.float32, 1e-5),
        (200, 140, jnp.float32, 1e-5),  # padded
        (256, 384, jnp.bfloat16, 2**-7),
    ],
)
def test_the_kernel_reads_as_many_keys_of_each_sample_as_it_is_told(
    on_cpu, queries, keys, dtype, tolerance
):
    q, k, v, g = arrays(queries, keys, dtype=dtype)
    lengths = jnp.array([1, keys, 129, 96])  # the third begins a second tile

    def told(q, k, v, g, lengths):
        out, pull = jax.vjp(lambda *heads: attention(*heads, lengths), q, k, v)
        slope = jax.jvp(lambda v: attention(q, k, v, lengths), (v,), (v,))[1]
        return out, slope, *pull(g)

    fused, program = on_mesh(told, q, k, v, g, lengths)
    assert "pallas_call" in program
    weights = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) / 4.0
    read = jnp.arange(keys) < lengths[:, None, None, None]
    weights = jax.nn.softmax(jnp.where(read, weights, -jnp.inf), axis=-1)
    expected = jnp.einsum("bhqk,bkhd->bqhd", weights, v.astype(jnp.float32))
    np.testing.assert_allclose(fused[0].astype(jnp.float32), expected, atol=tolerance)
    plain = told(q, k, v, g, lengths)
    for ours, theirs in zip(fused, plain, strict=True):
        assert ours.dtype == dtype
        ours, theirs = (np.asarray(x.astype(jnp.float32)) for x in (ours, theirs))
        most = max(1.0, np.abs(theirs).max())  # a key that is read alone has all gradients
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * most)
    behind = np.arange(keys) >= np.asarray(lengths)[:, None]
    for gradient in fused[3:]:
        assert not np.asarray(gradient.astype(jnp.float32))[behind].any()


def test_the_kernel_with_lengths_is_differentiated_in_a_loop_that_computes_again(on_cpu):
    q, k, v, g = arrays(256, 256)
    lengths = jnp.array([1, 256, 129, 96])

    def gradients(q, k, v, g, lengths):
        @jax.checkpoint
        def layer(x, _):
            return attention(x + q, k, v, lengths), None

        def loss(q, k, v):
            return (jax.lax.scan(layer, q, length=2)[0] * g).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    fused, program = on_mesh(gradients, q, k, v, g, lengths)
    assert "pallas_call" in program
    plain = gradients(q, k, v, g, lengths)
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def program_on_a_mesh(given):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return str(jax.make_jaxpr(both)(*given))


@pytest.mark.parametrize(
    "given",
    [
        {"queries": 256, "keys": 77},  # fewer keys than a tile
        {"queries": 128, "keys": 128, "size": 512},  # a larger head than the kernel takes
    ],
)
def test_attention_without_a_kernel_of_its_shape_is_plain(on_cpu, given):
    assert "pallas_call" not in program_on_a_mesh(arrays(**given))


@pytest.mark.parametrize(
    ("given", "numbers"),
    [({"heads": 3}, "3 heads and 4 samples"), ({"batch": 6}, "2 heads and 6 samples")],
)
def test_attention_that_the_mesh_does_not_divide_is_plain_and_says_so(on_cpu, given, numbers):
    with pytest.warns(UserWarning, match=numbers):
        assert "pallas_call" not in program_on_a_mesh(arrays(256, 256, **given))


def test_attention_without_a_mesh_is_plain(on_cpu):
    assert "pallas_call" not in str(jax.make_jaxpr(both)(*arrays(256, 256)))


def traced_for_a_gpu(dtype, size=64, lengths=None):
    here = make_mesh({"data": 1}, jax.devices()[:1]).abstract_mesh
    device = jax.sharding.AbstractDevice("NVIDIA H200", None, "gpu")
    mesh = AbstractMesh(
        here.axis_sizes, here.axis_names, axis_types=here.axis_types, abstract_device=device
    )

    def run(*given):
        with jax.sharding.use_abstract_mesh(mesh):
            return both(*given) if lengths is None else attention(*given[:3], lengths)

    shape = jax.ShapeDtypeStruct((4, 1024, 2, size), dtype)
    return jax.make_jaxpr(run)(*[shape] * 4)


@pytest.fixture
def with_cudnn(monkeypatch):
    monkeypatch.setattr(fused_attention, "_has_cudnn", lambda: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)


def test_half_precision_on_a_gpu_takes_cudnn_and_counts_by_its_formula(with_cudnn):
    program = traced_for_a_gpu(jnp.bfloat16)
    assert "dot_product_attention_bwd" in str(program)
    product = 2 * 4 * 2 * 1024 * 1024 * 64
    assert jaxpr_flops(program) == pytest.approx(9 * product, rel=0.01)
    assert jaxpr_flops(program, again=False) == pytest.approx(7 * product, rel=0.01)


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 64), (jnp.bfloat16, 160)])
def test_what_cudnn_does_not_take_is_plain_on_a_gpu(with_cudnn, dtype, size):
    assert "dot_product_attention" not in str(traced_for_a_gpu(dtype, size))


def test_lengths_are_plain_on_a_gpu(with_cudnn):
    program = traced_for_a_gpu(jnp.bfloat16, lengths=jnp.array([1, 2, 3, 4]))
    assert "dot_product_attention_fwd" not in str(program)
    assert "dot_product_attention_fwd" in str(traced_for_a_gpu(jnp.bfloat16))


def test_a_gpu_without_cudnn_is_plain():
    assert "dot_product_attention" not in str(traced_for_a_gpu(jnp.bfloat16))


def attending(denoiser):
    """Return a Denoiser whose input's pixels attend to each other first, in two heads of eight."""

    @jax.checkpoint
    def attended(params, x_t):
        tokens = x_t.reshape(x_t.shape[0], -1, 1, 1) * params["in"][:2]
        return x_t + attention(tokens, tokens**2, tokens).mean((2, 3)).reshape(x_t.shape)

    def on(function):
        return lambda params, x_t, *rest: function(params, attended(params, x_t), *rest)

    return denoiser._replace(
        x0=on(denoiser.x0),
        features=on(denoiser.features),
        x0_and_features=on(denoiser.x0_and_features),
    )


def cycle_on(sizes):
    """Run a cycle of a few-step student, its batch in parts; return metrics, state and program."""
    config = toy.config(student_times=(8.0, 0.5), batch_size=16, microbatches=2)
    nets = [toy.init_mlp(seed) for seed in range(3)]
    head = {"w": jnp.linspace(-1.0, 1.0, 8)}
    state = init_state(config, generator=nets[1], critic=nets[2], discriminator=head)
    players = toy.players()
    names = ("teacher", "generator", "critic")
    players = players._replace(**{name: attending(getattr(players, name)) for name in names})
    batch, mesh = make_batch(config), make_mesh(sizes)
    shardings = cycle_shardings(state, nets[0], batch, mesh)
    cycle = make_cycle(spread_players(players, mesh), config, shardings=shardings, donate=False)
    given = jax.device_put((state, nets[0], batch), shardings[:3])
    key = jax.device_put(jax.random.key(0), shardings.key)
    return cycle(*given, key), str(cycle.trace(*given, key).jaxpr)


def test_a_cycle_with_the_kernel_on_eight_devices_equals_the_plain_one(on_cpu, short, monkeypatch):
    fused, program = cycle_on({"data": 2, "fsdp": 2, "tensor": 2})
    assert program.count("pallas_call") >= 6
    monkeypatch.undo()
    plain, program = cycle_on({"data": 1})
    assert "pallas_call" not in program
    for ours, theirs in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)
