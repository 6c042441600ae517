"""Low-rank adapters: the same as merged weights, and nothing of the base is differentiated."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dmd2_jax.families.published.model import PublishedModel, published_name
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.networks.initialise import init_variables
from dmd2_jax.networks.layers import Conv, Linear
from dmd2_jax.networks.lora import (
    STABLE_DIFFUSION_TARGETS,
    LoraConfig,
    combine,
    lora_init,
    matching_targets,
    merge,
)
from dmd2_jax.networks.sd_resnet import ResnetBlock
from tests.families import tiny_models
from tests.networks import reference

CONFIG = LoraConfig(rank=2, alpha=3.0, targets=("*",))

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (Linear(5), (4, 3)),
    "linear_without_bias": (Linear(5, use_bias=False), (2, 4, 3)),
    "conv": (Conv(5, padding=1), (2, 6, 6, 3)),
    "strided_conv": (Conv(5, 4, stride=2, padding=1), (2, 6, 6, 3)),
    "conv_1x1": (Conv(5, 1), (2, 6, 6, 3)),
    "filtered_conv": (Conv(5, padding=1, down_filter=(1, 3, 3, 1)), (2, 6, 6, 3)),
    "resnet_block": (ResnetBlock(8, groups=2, eps=1e-5), (2, 6, 6, 4)),
    "rematerialised": (nn.remat(ResnetBlock)(8, groups=2, eps=1e-5), (2, 6, 6, 4)),
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def trained(adapters: Any) -> Any:
    """Return adapters whose every number is drawn, as after training."""
    leaves, structure = jax.tree.flatten(adapters)
    values = [0.3 * jnp.asarray(normal(*x.shape, seed=i)) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, values)


def make(name: str) -> tuple[nn.Module, Any, Any, jax.Array]:
    module, shape = LAYERS[name]
    x = jnp.asarray(normal(*shape, seed=7))
    base = init_variables(module, jax.random.key(0), x)
    adapters = trained(lora_init(jax.random.key(1), base, CONFIG))
    return module, base, adapters, x


@pytest.mark.parametrize("name", sorted({*LAYERS} - {"resnet_block"}))
def test_combine_computes_what_merged_weights_compute(name: str) -> None:
    module, base, adapters, x = make(name)

    @jax.jit
    def three(adapters: Any) -> list[jax.Array]:
        versions = (combine(base, adapters, CONFIG), merge(base, adapters, CONFIG), base)
        return [module.apply(params, x) for params in versions]

    adapted, expected, alone = three(adapters)
    np.testing.assert_allclose(adapted, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert np.abs(adapted - alone).max() > 0.1


def test_linear_with_an_adapter_equals_its_formula() -> None:
    module, base, adapters, x = make("linear")
    w, own = base["params"], adapters["lora"]
    expected = x @ w["kernel"] + w["bias"] + 3.0 / 2 * ((x @ own["down"]) @ own["up"])
    got = module.apply(combine(base, adapters, CONFIG), x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_strided_conv_with_an_adapter_equals_two_convolutions() -> None:
    module, base, adapters, x = make("strided_conv")
    w, own = base["params"], adapters["lora"]
    assert own["down"].shape == (4, 4, 3, 2)  # the layer's window and stride, then 1x1
    narrow = reference.conv(x, own["down"], np.zeros(2), 2, 1)
    wide = reference.conv(narrow, own["up"], np.zeros(5), 1, 0)
    expected = reference.conv(x, w["kernel"], w["bias"], 2, 1) + 1.5 * wide
    got = module.apply(combine(base, adapters, CONFIG), x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["linear", "conv", "strided_conv", "rematerialised"])
def test_combine_has_the_gradient_of_merged_weights(name: str) -> None:
    module, base, adapters, x = make(name)

    def loss(make_params: Any) -> Any:
        def of(adapters: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(module.apply(make_params(base, adapters, CONFIG), x)))

        return jax.jit(jax.grad(of, argnums=(0, 1)))

    got, expected = loss(combine)(adapters, x), loss(merge)(adapters, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_gradient_of_adapters_makes_no_gradient_and_no_copy_of_the_base() -> None:
    module = Linear(256)
    x = jnp.ones((2, 256))
    base = init_variables(module, jax.random.key(0), x)
    adapters = lora_init(jax.random.key(1), base, CONFIG)

    def temporaries(make_params: Any) -> int:
        def loss(adapters: Any, base: Any) -> jax.Array:
            return jnp.sum(module.apply(make_params(base, adapters, CONFIG), x) ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(adapters, base).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    kernel = 4 * 256 * 256
    assert temporaries(merge) >= kernel
    assert temporaries(combine) < kernel / 8


def test_gradient_of_adapters_in_a_loop_computes_no_gradient_of_a_convolution() -> None:
    # The convolution's own gradient rule always writes both gradients; the unused one must go.
    module = Conv(32, padding=1)
    x = jnp.ones((2, 8, 8, 32))
    base = init_variables(module, jax.random.key(0), x)
    adapters = lora_init(jax.random.key(1), base, CONFIG)

    def operations(own: Any, use: Any) -> float:
        def loss(own: Any, base: Any) -> jax.Array:
            h = x
            for _ in range(2):
                h = jnp.sin(module.apply(use(base, own), h))
            return jnp.sum(h)

        def descend(own: Any, base: Any) -> Any:
            def step(own: Any, _: None) -> tuple[Any, None]:
                return jax.tree.map(jnp.subtract, own, jax.grad(loss)(own, base)), None

            return jax.lax.scan(step, own, None, length=3)[0]

        return jax.jit(descend).lower(own, base).compile().cost_analysis()["flops"]

    # Two convolutions forwards, and the second one's gradient by its input: three. Of whole weights
    # the two gradients by the kernels as well: five. The adapters of rank 2 add a little.
    ratio = operations(adapters, lambda base, own: combine(base, own, CONFIG)) / operations(
        base, lambda _, own: own
    )
    assert 3 / 5 < ratio < 3.8 / 5


def test_lora_init_begins_as_the_base() -> None:
    module, base, _, x = make("resnet_block")
    adapters = lora_init(jax.random.key(1), base, CONFIG)
    adapted = module.apply(combine(base, adapters, CONFIG), x)
    np.testing.assert_array_equal(adapted, module.apply(base, x))


def test_lora_init_draws_down_uniformly_within_the_root_of_its_fan_in() -> None:
    x = jnp.ones((1, 8, 8, 64))
    base = init_variables(Conv(4, padding=1), jax.random.key(0), x)
    down = lora_init(jax.random.key(1), base, LoraConfig(32, 1.0, ("*",)))["lora"]["down"]
    bound = 1 / np.sqrt(3 * 3 * 64)
    assert down.shape == (3, 3, 64, 32)
    assert 0.99 * bound < np.abs(down).max() <= bound
    # 18,432 uniform numbers: their deviation's own deviation is 0.5 %.
    assert np.std(down) == pytest.approx(bound / np.sqrt(3), rel=0.03)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("conv*", {"conv1", "conv2", "conv_shortcut"}),
        ("conv?", {"conv1", "conv2"}),
        ("mid.conv1", {"conv1"}),
        ("m?d.*1", {"conv1"}),
    ],
)
def test_lora_init_adapts_the_layers_whose_names_end_as_a_target(
    target: str, expected: set[str]
) -> None:
    block = make("resnet_block")[1]["params"]
    adapters = lora_init(
        jax.random.key(0), {"params": {"mid": block}}, LoraConfig(1, 1.0, (target,))
    )
    assert set(adapters["lora"]["mid"]) == expected


@pytest.mark.parametrize("target", ["onv1", "conv", "Conv1", "norm1", "up.conv1"])
def test_lora_init_refuses_a_target_that_matches_no_layer(target: str) -> None:
    base = {"params": {"mid": make("resnet_block")[1]["params"]}}
    with pytest.raises(
        ValueError, match="match no layer, expected ends of names such as mid.conv1"
    ):
        lora_init(jax.random.key(0), base, LoraConfig(1, 1.0, ("conv1", target)))
    assert matching_targets(base, ("conv1", target)) == ("conv1",)


def test_stable_diffusion_targets_are_all_but_the_embeddings_and_the_ends() -> None:
    model = PublishedModel.from_config(tiny_models.SDXL_UNET, classes=CLASSES)
    base = model.param_shapes()
    assert matching_targets(base, STABLE_DIFFUSION_TARGETS, published_name) == (
        STABLE_DIFFUSION_TARGETS
    )
    config = LoraConfig(4, 8.0, STABLE_DIFFUSION_TARGETS)
    adapters = jax.eval_shape(lambda: lora_init(jax.random.key(0), base, config, published_name))
    adapted = {path[1:-1] for path in flatten_dict(adapters)}
    layers = {path[1:-1] for path in flatten_dict(base) if path[-1] == "kernel"}
    left = {".".join(path) for path in layers - adapted}
    ends = {"conv_in", "conv_out"}
    assert left == ends | {
        f"{name}_embedding.linear_{i}" for name in ("time", "add") for i in (1, 2)
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank=0 of LoRA, expected at least 1"),
        ({"rank": -4}, "rank=-4 of LoRA, expected at least 1"),
        ({"alpha": 0.0}, "alpha=0.0 of LoRA, expected a positive number"),
        ({"alpha": float("nan")}, "alpha=nan of LoRA"),
        ({"targets": ()}, "targets=\\(\\), expected layers' names"),
    ],
)
def test_lora_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraConfig(**({"rank": 2, "alpha": 1.0, "targets": ("*",)} | changes))


@pytest.mark.parametrize("use", [combine, merge])
def test_adapters_of_another_rank_or_base_are_refused(use: Any) -> None:
    _, base, adapters, _ = make("conv")
    with pytest.raises(
        ValueError, match=r"at rank=3: .*got \(3, 3, 3, 2\), expected \(3, 3, 3, 3\)"
    ):
        use(base, adapters, LoraConfig(3, 1.0, ("*",)))
    wider = init_variables(Conv(6, padding=1), jax.random.key(0), jnp.ones((1, 6, 6, 3)))
    with pytest.raises(ValueError, match=r"up \(got \(1, 1, 2, 5\), expected \(1, 1, 2, 6\)\)"):
        use(wider, adapters, CONFIG)
    with pytest.raises(ValueError, match="no such layer"):
        use(make("resnet_block")[1], adapters, CONFIG)
    with pytest.raises(ValueError, match="without 'lora'"):
        use(combine(base, adapters, CONFIG), adapters, CONFIG)
    with pytest.raises(ValueError, match="adapters of \\['params'\\]"):
        use(base, base, CONFIG)
