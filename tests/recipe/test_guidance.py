"""A range of guidance scales in every family, and beside adapters: the program is traced whole."""

import jax
import numpy as np
import pytest

from dmd2_jax.config.load import apply_overrides
from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.guidance_embedding import GUIDANCE
from dmd2_jax.networks.lora import LoraConfig, lora_adapter, lora_init
from dmd2_jax.recipe.distillation import open_distillation, trace
from dmd2_jax.recipe.guidance import chosen_scale, drawn_scales, told_adapter, told_network
from dmd2_jax.recipe.open import build_family
from dmd2_jax.runtime.sharding import make_mesh
from tests import tiny, tiny_unet
from tests.flow_pipelines import RESOLUTION, flow_pipeline

RANGE = {"distill.guidance_range": "1,4"}
LORA = {"distill.lora_rank": "2", "distill.lora_critic": "True"}
FAMILIES = {
    "edm": {"distill.student_times": "80,1", "distill.critic_knows_step": "True"},
    "sit": LORA,
    "sd3": LORA,
    "flux": LORA,
    "z_image": {},
    "qwen_image": LORA,
}


def opened(name: str):
    config = (tiny_unet if name == "edm" else tiny).get_config()
    given = dict(FAMILIES[name])
    if name in ("sd3", "flux", "z_image", "qwen_image"):
        given |= {
            "model.family": name,
            "model.pipeline": str(flow_pipeline(name)),
            "model.resolution": str(RESOLUTION // 2),
            "distill.denoising_weight": "flow",
            "distill.student_times": "1.0,0.5",
        }
    else:
        given |= {"model.num_classes": "3", "model.image_channels": "1"}
    apply_overrides(config, given | RANGE)
    family = build_family(config)
    return config, family, open_distillation(config, family, make_mesh({"data": 1}))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cycle_of_every_family_takes_scales(name: str) -> None:
    _, _, it = opened(name)
    for player in (it.state.generator, it.state.critic, it.state.ema[0]):
        params = getattr(player, "params", player)
        assert (GUIDANCE in params) == (name != "flux")  # which has an input of its own
    assert GUIDANCE not in it.teacher
    assert trace(it).jaxpr.out_avals


def test_weights_of_the_scale_are_split_as_others_are() -> None:
    config, family, _ = opened("edm")
    it = open_distillation(config, family, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    (place,) = it.shardings.state.generator.params[GUIDANCE].values()
    assert tuple(place.spec) == ("fsdp", "tensor")
    assert trace(it).jaxpr.out_avals


def test_what_is_told_beside_adapters_is_not_one_of_them() -> None:
    _, family, _ = opened("sit")
    random = np.random.RandomState(0)
    base = jax.tree.map(
        lambda x: random.standard_normal(x.shape).astype(np.float32), family.param_shapes()
    )
    lora = LoraConfig(2, 4.0, ("to_q",))
    own = lora_init(jax.random.key(0), base, lora, family.tensor_name)
    kernels = {"a/linear_1": np.ones((256, 4), np.float32)}
    adapter = told_adapter(lora_adapter(lora, family.tensor_name))
    both = adapter.combine(base, {**own, GUIDANCE: kernels})
    assert both[GUIDANCE] is kernels
    alone = lora_adapter(lora, family.tensor_name).combine(base, own)
    jax.tree.map(
        np.testing.assert_array_equal, {k: v for k, v in both.items() if k != GUIDANCE}, alone
    )


def test_a_scale_is_of_the_range_and_by_default_its_middle() -> None:
    told = {"guidance_range": (1, 4)}
    assert chosen_scale(told) == 2.5 and chosen_scale(told, 4.0) == 4.0
    assert chosen_scale({}) is None and chosen_scale({"guidance_range": ()}) is None
    with pytest.raises(Refused, match=r"guidance=0.5, expected a scale in 1\.\.4"):
        chosen_scale(told, 0.5)
    with pytest.raises(Refused, match="config.distill.guidance_range=1,4 a student that takes"):
        chosen_scale({}, 3.0)
    assert drawn_scales(told, 8) == (1.0, 2.0, 3.0, 4.0) and drawn_scales(told, 2) == (1.0, 4.0)
    assert drawn_scales({}, 8) == ()


def test_a_family_that_says_no_layer_is_refused() -> None:
    class Own:
        """A family of a user's own."""

        input_guidance = None
        denoiser = None

    config = tiny.get_config()
    apply_overrides(config, RANGE)
    with pytest.raises(Refused, match="a family Own that lacks guidance_layer"):
        told_network(config, Own())  # type: ignore[arg-type]
