"""Transformers of published flows on eight devices: the numbers of one, of weights that are split.

What a cycle does with such networks is the same for all: tests/distill/test_sharded_cycle.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax import families
from dmd2_jax.distill import Players
from dmd2_jax.recipe.placement import spread_players
from dmd2_jax.runtime.gathering import gathering
from dmd2_jax.runtime.sharding import batch_sharding, make_mesh, tree_shardings
from tests.conformance.derive import relative
from tests.flow_pipelines import random_weights

BATCH = 4  # one a device that has its own samples
WIDTH = 48  # of tokens: 48 x 48 weights are the smallest matrices that are split
JOINT = {
    "attention_head_dim": WIDTH // 2,
    "num_attention_heads": 2,
    "num_layers": 2,  # the last one may leave out what nothing reads of the prompt
    "joint_attention_dim": 10,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd3": {
        **JOINT,
        "_class_name": "SD3Transformer2DModel",
        "caption_projection_dim": WIDTH,
        "in_channels": 3,
        "out_channels": 3,
        "pooled_projection_dim": 5,
        "pos_embed_max_size": 5,
        "qk_norm": "rms_norm",
        "sample_size": 8,
    },
    "flux": {
        **JOINT,
        "_class_name": "FluxTransformer2DModel",
        "num_layers": 1,
        "axes_dims_rope": [4, 8, 12],
        "guidance_embeds": True,
        "in_channels": 12,
        "num_single_layers": 1,
        "pooled_projection_dim": 5,
    },
    "flux2_klein": {
        **JOINT,
        "_class_name": "Flux2Transformer2DModel",
        "num_layers": 1,
        "axes_dims_rope": [4, 4, 8, 8],
        "guidance_embeds": False,
        "in_channels": 12,
        "num_single_layers": 1,
        "timestep_guidance_channels": 16,
    },
    "z_image": {
        "_class_name": "ZImageTransformer2DModel",
        "axes_dims": [4, 8, 12],
        "axes_lens": [80, 16, 16],
        "cap_feat_dim": 10,
        "dim": WIDTH,
        "in_channels": 3,
        "n_heads": 2,
        "n_kv_heads": 2,
        "n_layers": 1,
        "n_refiner_layers": 1,
    },
    "qwen_image": {
        **JOINT,
        "_class_name": "QwenImageTransformer2DModel",
        "axes_dims_rope": [4, 8, 12],
        "in_channels": 12,
        "out_channels": 3,
    },
}


def built(name: str) -> Any:
    """Build a small family."""
    settings = {"transformer": CONFIGS[name], "scheduler": {}, "resolution": (4, 6)}
    return getattr(families, name).build(settings)


def inputs(family: Any) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Draw (x_t, t, cond) with prompts of different lengths."""
    random = np.random.default_rng(0)
    shapes = {k: v for k, v in family.cond_shapes(BATCH, tokens=64).items() if "negative" not in k}
    cond = {k: random.normal(size=shape.shape).astype("f4") for k, shape in shapes.items()}
    if "prompt_mask" in cond:
        lengths = np.array([64, 5, 40, 33])
        cond["prompt_mask"] = (np.arange(64) < lengths[:, None]).astype("f4")
    x_t = random.normal(size=(BATCH, *family.image_shape)).astype("f4")
    return x_t, np.array([1.0, 0.3, 0.7, 0.9], "f4"), cond


def x0_and_gradients(denoiser: Any, *arguments: Any) -> tuple[jax.Array, Any]:
    """Return x_0 and the gradient of its sum of squares, of one program."""

    def loss(params: Any, *inputs: Any) -> tuple[jax.Array, jax.Array]:
        x_0 = denoiser.x0(params, *inputs)
        return jnp.sum(x_0**2), x_0

    gradients, x_0 = jax.jit(jax.grad(loss, has_aux=True))(*arguments)
    return x_0, gradients


@pytest.mark.parametrize("name", CONFIGS)
def test_x0_and_gradients_of_split_weights_are_those_of_one_device(name: str) -> None:
    family = built(name)
    params, batch = random_weights(family.param_shapes()), inputs(family)
    expected, of_one = x0_and_gradients(family.denoiser, params, *batch)

    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    teacher = spread_players(Players(*[family.denoiser] * 3, None), mesh).teacher
    params = jax.device_put(params, tree_shardings(params, mesh))
    batch = jax.device_put(batch, batch_sharding(mesh))
    x_0, gradients = x0_and_gradients(teacher, params, *batch)

    kernels = [x for x in jax.tree.leaves(params) if x.ndim == 2 and x.size >= WIDTH * WIDTH]
    assert len(kernels) >= 19
    assert all(x.size == 4 * x.addressable_shards[0].data.size for x in kernels)
    assert relative(x_0, expected) < 1e-5
    paths = jax.tree_util.tree_leaves_with_path(of_one)
    for (path, right), ours in zip(paths, jax.tree.leaves(gradients), strict=True):
        wrong = np.linalg.norm(ours - right)
        assert wrong <= 1e-5 * np.linalg.norm(right), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_weight_that_fsdp_splits_comes_together_in_its_layer(name: str) -> None:
    """As accelerators run it; see `brought_together`."""
    family, mesh = built(name), make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    params = family.param_shapes()

    def x0(*arguments: Any) -> jax.Array:
        with gathering(mesh):
            return family.denoiser.x0(*arguments)

    program = str(jax.make_jaxpr(x0)(params, *inputs(family)))
    places = jax.tree.leaves(tree_shardings(params, mesh))
    assert program.count("name=_gather") == sum("fsdp" in place.spec for place in places) >= 19
