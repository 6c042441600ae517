"""Guidance scales as an input: each sample has its own, which all players take of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.diffusion.guidance import Guided, guided_by_cond, guided_x0, told_scale
from dmd2_jax.distill import draw_cycle, objectives
from tests.distill import toy

RANGE = {"guidance_range": (1.5, 4.0)}


def test_scales_are_uniform_in_their_range_and_move_no_other_draw() -> None:
    it = toy.config(batch_size=500, **RANGE)
    draws = draw_cycle(jax.random.key(1), it, toy.SCHEDULE)
    plain = draw_cycle(jax.random.key(1), toy.config(batch_size=500), toy.SCHEDULE)
    assert plain.scales is None
    jax.tree.map(np.testing.assert_array_equal, draws._replace(scales=None), plain)
    for scale in draws.scales:
        assert scale.shape == (3, 500) and 1.5 <= scale.min() < 1.55 and 3.95 < scale.max() <= 4.0
        np.testing.assert_allclose(np.mean(scale), 2.75, atol=0.08)
    assert np.all(draws.scales.fake != draws.scales.real)


def test_each_sample_is_guided_and_told_its_own_scale() -> None:
    net, params = toy.denoiser(), toy.init_mlp(0)
    x_t = jax.random.normal(jax.random.key(0), (4, *toy.SHAPE))
    t, cond, scale = jnp.full(4, 2.0), jnp.arange(4.0), jnp.asarray([0.0, 1.0, 2.5, 4.0])
    guided = guided_by_cond(net).x0(params, x_t, t, Guided(cond, scale))
    one_by_one = [
        guided_x0(net, float(scale[i]))(params, x_t[i : i + 1], t[:1], cond[i : i + 1])
        for i in range(4)
    ]
    np.testing.assert_allclose(guided, np.concatenate(one_by_one), rtol=1e-5, atol=1e-6)
    told = told_scale(net, toy.told)
    x_0, features = told.x0_and_features(params, x_t, t, Guided(cond, scale))
    expected = net.x0_and_features(params, x_t, t, cond + 0.2 * scale)
    np.testing.assert_array_equal(x_0, expected[0])
    np.testing.assert_array_equal(features[0], expected[1][0])
    null = told.null_cond(Guided(cond, scale))
    np.testing.assert_array_equal(null.scale, scale)
    assert not np.any(null.cond)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_range": (4.0, 1.0)}, "guidance_range=(4.0, 1.0), expected (low, high)"),
        ({"guidance_range": (1.0,)}, "guidance_range=(1.0,), expected (low, high)"),
        ({"guidance": 3.0} | RANGE, "'distribution_matching' with guidance=3.0"),
        ({"regression_weight": 0.25} | RANGE, "pairs that the teacher made at one scale"),
        (
            {"objectives": (objectives.GuidanceAugmentation(guidance=3.0),)} | RANGE,
            "'guidance_augmentation' with guidance=3.0",
        ),
    ],
)
def test_a_range_is_refused_beside_a_scale_for_all(changes: dict, message: str) -> None:
    with pytest.raises(Refused) as refused:
        toy.config(**changes)
    assert message in str(refused.value)
