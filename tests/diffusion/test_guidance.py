import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.guidance import guide, guided_x0
from dmd2_jax.diffusion.schedules import edm


def linear_denoiser(calls=None):
    """x_0 = x_t / (1 + t) + params * cond, every sample on its own."""

    def x0(params, x_t, t, cond):
        if calls is not None:
            calls.append(x_t.shape)
        return x_t / (1.0 + t[:, None]) + params * cond["label"]

    def features(params, x_t, t, cond):
        return (x_t,)

    def both(params, x_t, t, cond):
        return x0(params, x_t, t, cond), features(params, x_t, t, cond)

    return Denoiser(x0, features, both, edm(), lambda cond: jax.tree.map(jnp.zeros_like, cond))


def example():
    x_t = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    t = jnp.array([0.0, 1.0, 3.0])
    cond = {"label": jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])}
    return x_t, t, cond


def test_guide_extrapolates_from_unconditional():
    c, u = jnp.array([[3.0]]), jnp.array([[1.0]])
    assert float(guide(c, u, 0.0)[0, 0]) == 1.0
    assert float(guide(c, u, 1.0)[0, 0]) == 3.0
    assert float(guide(c, u, 7.5)[0, 0]) == 16.0


def test_guide_takes_one_scale_a_sample():
    c, u = jnp.full((3, 2), 3.0), jnp.ones((3, 2))
    guided = guide(c, u, jnp.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(guided, [[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])


@pytest.mark.parametrize("w", [None, 1, 1.0, np.float32(1.0)])
def test_guided_x0_without_guidance_is_the_denoisers_own(w):
    denoiser = linear_denoiser()
    assert guided_x0(denoiser, w) is denoiser.x0


@pytest.mark.parametrize("w", [0.0, 1.75, 8.0])
def test_guided_x0_equals_two_separate_passes(w):
    denoiser = linear_denoiser()
    x_t, t, cond = example()
    c = denoiser.x0(0.5, x_t, t, cond)
    u = denoiser.x0(0.5, x_t, t, {"label": jnp.zeros((3, 2))})
    guided = jax.jit(guided_x0(denoiser, w))(0.5, x_t, t, cond)
    np.testing.assert_allclose(guided, u + w * (c - u), rtol=1e-6)


def test_guided_x0_takes_a_traced_scale_for_each_sample():
    denoiser = linear_denoiser()
    x_t, t, cond = example()
    w = jnp.array([0.0, 1.0, 2.0])
    guided = jax.jit(lambda w: guided_x0(denoiser, w)(1.0, x_t, t, cond))(w)
    base = x_t / (1.0 + t[:, None])
    np.testing.assert_allclose(guided, base + w[:, None] * cond["label"], rtol=1e-6)


def test_guided_x0_runs_one_doubled_pass():
    calls = []
    x_t, t, cond = example()
    guided_x0(linear_denoiser(calls), 2.0)(1.0, x_t, t, cond)
    assert calls == [(6, 2)]


def test_guided_x0_keeps_each_samples_pair_adjacent_unconditional_first():
    seen = {}

    def x0(params, x_t, t, cond):
        seen.update(x_t=x_t, t=t, cond=cond)
        return x_t

    denoiser = linear_denoiser()._replace(x0=x0)
    x_t, t, cond = example()
    guided_x0(denoiser, 2.0)(None, x_t, t, cond)
    np.testing.assert_array_equal(seen["t"], [0.0, 0.0, 1.0, 1.0, 3.0, 3.0])
    np.testing.assert_array_equal(seen["x_t"], np.repeat(x_t, 2, axis=0))
    np.testing.assert_array_equal(seen["cond"]["label"][0::2], np.zeros((3, 2)))
    np.testing.assert_array_equal(seen["cond"]["label"][1::2], cond["label"])


def test_guided_x0_moves_no_sharded_batch_between_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    x_t, t = jnp.ones((16, 2)), jnp.ones(16)
    batch = jax.device_put((x_t, t, {"label": x_t}), sharded)
    guided = jax.jit(guided_x0(linear_denoiser(), 2.0), out_shardings=sharded)
    program = guided.lower(1.0, *batch).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in program


def test_guided_x0_refuses_a_missing_condition():
    x_t, t, _ = example()
    with pytest.raises(ValueError, match="got no condition"):
        guided_x0(linear_denoiser(), 2.0)(1.0, x_t, t, None)
