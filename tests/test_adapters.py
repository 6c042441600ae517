import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from dmd2_jax.adapters import from_function, from_linen, from_nnx
from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.diffusion.predictions import to_x0
from dmd2_jax.diffusion.schedules import discrete_vp, edm, rectified_flow

SCHEDULES = {"eps": discrete_vp(), "v": discrete_vp(), "flow": rectified_flow(), "x0": edm()}
KINDS = list(SCHEDULES)


class LinenNet(linen.Module):
    def setup(self):
        self.encoder = linen.Dense(5)
        self.decoder = linen.Dense(2)

    def features(self, x_t, t, cond):
        return (jnp.tanh(self.encoder(x_t + t[:, None] + cond)),)

    def both(self, x_t, t, cond):
        features = self.features(x_t, t, cond)
        return self.decoder(features[0]), features

    def __call__(self, x_t, t, cond):
        return self.both(x_t, t, cond)[0]


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Linear(2, 5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.decoder = nnx.Linear(5, 2, rngs=rngs)

    def features(self, x_t, t, cond):
        return (jnp.tanh(self.encoder(x_t + t[:, None] + cond)),)

    def both(self, x_t, t, cond):
        features = self.features(x_t, t, cond)
        return self.decoder(self.dropout(features[0])), features

    def __call__(self, x_t, t, cond):
        return self.both(x_t, t, cond)[0]


def plain_predict(params, x_t, t, cond):
    return jnp.tanh(params["w"] * x_t + t[:, None]) + cond


def inputs(schedule):
    x_t = jax.random.normal(jax.random.key(0), (3, 2))
    cond = jax.random.normal(jax.random.key(1), (3, 2))
    return x_t, jnp.asarray(schedule.levels[[10, 500, 900]]), cond


def by_hand(kind, schedule, raw, x_t, t):
    return to_x0(kind, raw, x_t, schedule.alpha(t), schedule.sigma(t))


@pytest.mark.parametrize("kind", KINDS)
def test_from_function_equals_calling_by_hand(kind):
    schedule = SCHEDULES[kind]
    x_t, t, cond = inputs(schedule)
    params = {"w": jnp.float32(0.3)}
    denoiser = from_function(plain_predict, schedule=schedule, prediction=kind)
    expected = by_hand(kind, schedule, plain_predict(params, x_t, t, cond), x_t, t)
    np.testing.assert_array_equal(denoiser.x0(params, x_t, t, cond), expected)
    assert denoiser.schedule is schedule


@pytest.mark.parametrize("kind", KINDS)
def test_from_linen_equals_calling_by_hand(kind):
    schedule, module = SCHEDULES[kind], LinenNet()
    x_t, t, cond = inputs(schedule)
    variables = module.init(jax.random.key(2), x_t, t, cond)
    denoiser = from_linen(module, schedule=schedule, prediction=kind)
    expected = by_hand(kind, schedule, module.apply(variables, x_t, t, cond), x_t, t)
    np.testing.assert_array_equal(denoiser.x0(variables["params"], x_t, t, cond), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_from_nnx_equals_calling_by_hand(kind):
    schedule, module = SCHEDULES[kind], NnxNet(nnx.Rngs(0))
    module.eval()
    x_t, t, cond = inputs(schedule)
    denoiser, params = from_nnx(module, schedule=schedule, prediction=kind)
    expected = by_hand(kind, schedule, module(x_t, t, cond), x_t, t)
    np.testing.assert_array_equal(denoiser.x0(params, x_t, t, cond), expected)


def test_from_nnx_params_are_differentiable_and_complete():
    module = NnxNet(nnx.Rngs(0))
    module.eval()
    denoiser, params = from_nnx(module, schedule=edm(), prediction="x0")
    x_t, t, cond = inputs(edm())
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(denoiser.x0(p, x_t, t, cond) ** 2)))(params)
    leaves = jax.tree.leaves(gradients)
    assert len(leaves) == 4  # two kernels, two biases; no random state of the dropout
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in leaves)


def test_from_nnx_leaves_the_module_as_it_was():
    module = NnxNet(nnx.Rngs(0))
    module.eval()
    denoiser, params = from_nnx(module, schedule=edm(), prediction="x0")
    x_t, t, cond = inputs(edm())
    before = np.asarray(module(x_t, t, cond))
    denoiser.x0(jax.tree.map(jnp.zeros_like, params), x_t, t, cond)
    np.testing.assert_array_equal(module(x_t, t, cond), before)


def made_with_features():
    """(denoiser, params, features by hand) of each adapter, features and both from methods."""
    x_t, t, cond = inputs(edm())
    linen_net, nnx_net = LinenNet(), NnxNet(nnx.Rngs(0))
    nnx_net.eval()
    methods = {"features_method": "features", "both_method": "both"}
    options = {"schedule": edm(), "prediction": "x0"}
    variables = linen_net.init(jax.random.key(2), x_t, t, cond)
    yield (
        from_linen(linen_net, **options, **methods),
        variables["params"],
        linen_net.apply(variables, x_t, t, cond, method="features"),
    )
    yield *from_nnx(nnx_net, **options, **methods), nnx_net.features(x_t, t, cond)

    def features(params, x_t, t, cond):
        return (params * x_t, cond)

    def both(params, x_t, t, cond):
        return x_t, features(params, x_t, t, cond)

    def predict(params, x_t, t, cond):
        return x_t

    expected = (2.0 * x_t, cond)
    yield from_function(predict, **options, features=features), 2.0, expected
    yield from_function(predict, **options, predict_with_features=both), 2.0, expected


@pytest.mark.parametrize("which", range(4), ids=["linen", "nnx", "features", "both"])
def test_features_equal_calling_by_hand(which):
    denoiser, params, expected = list(made_with_features())[which]
    found = denoiser.features(params, *inputs(edm()))
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("which", range(4), ids=["linen", "nnx", "features", "both"])
def test_x0_and_features_equals_the_two_apart(which):
    denoiser, params, _ = list(made_with_features())[which]
    x_0, found = denoiser.x0_and_features(params, *inputs(edm()))
    np.testing.assert_array_equal(x_0, denoiser.x0(params, *inputs(edm())))
    for got, want in zip(found, denoiser.features(params, *inputs(edm())), strict=True):
        np.testing.assert_array_equal(got, want)


def test_x0_and_features_with_both_runs_one_pass():
    calls = []

    def both(params, x_t, t, cond):
        calls.append("both")
        return x_t, (x_t,)

    def predict(params, x_t, t, cond):
        calls.append("predict")
        return x_t

    denoiser = from_function(predict, schedule=edm(), prediction="x0", predict_with_features=both)
    denoiser.x0_and_features(None, *inputs(edm()))
    assert calls == ["both"]


@pytest.mark.parametrize("name", ["features", "x0_and_features"])
def test_from_function_without_features_says_what_to_pass(name):
    denoiser = from_function(plain_predict, schedule=edm(), prediction="x0")
    with pytest.raises(ValueError, match="pass features= or predict_with_features="):
        getattr(denoiser, name)({"w": 1.0}, *inputs(edm()))


def test_null_cond_is_zeros_by_default():
    denoiser = from_function(plain_predict, schedule=edm(), prediction="x0")
    null = denoiser.null_cond({"text": jnp.ones((2, 3)), "label": jnp.ones((2, 5))})
    assert jax.tree.map(jnp.shape, null) == {"text": (2, 3), "label": (2, 5)}
    assert all(not leaf.any() for leaf in jax.tree.leaves(null))


def test_null_cond_default_refuses_integer_labels():
    denoiser = from_function(plain_predict, schedule=edm(), prediction="x0")
    with pytest.raises(ValueError, match="0 is a class"):
        denoiser.null_cond(jnp.array([3, 4]))


def test_null_cond_given_is_used_by_guidance():
    def predict(params, x_t, t, cond):
        return jnp.broadcast_to(cond[:, None].astype(jnp.float32), x_t.shape)

    denoiser = from_function(
        predict, schedule=edm(), prediction="x0", null_cond=lambda cond: jnp.full_like(cond, 10)
    )
    x_t, t, _ = inputs(edm())
    guided = guided_x0(denoiser, 3.0)(None, x_t, t, jnp.array([1, 2, 10]))
    # 10 + 3 (c - 10)
    np.testing.assert_allclose(guided[:, 0], [-17.0, -14.0, 10.0], rtol=1e-6)


@pytest.mark.parametrize("make", [from_linen, from_nnx])
def test_module_adapters_refuse_a_method_that_is_not_there(make):
    module = LinenNet() if make is from_linen else NnxNet(nnx.Rngs(0))
    with pytest.raises(ValueError, match="has no method 'bottleneck'"):
        make(module, schedule=edm(), prediction="x0", features_method="bottleneck")


def test_from_function_refuses_unknown_prediction():
    with pytest.raises(ValueError, match="prediction kind 'noise' must be one of"):
        from_function(plain_predict, schedule=edm(), prediction="noise")


def test_from_function_refuses_eps_where_it_does_not_determine_x_0():
    with pytest.raises(ValueError, match="eps does not determine x_0 there"):
        from_function(plain_predict, schedule=rectified_flow(), prediction="eps")
