"""DINOv2's encoder against transformers' own, and its refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families.published.folder import read_component
from dmd2_jax.networks.dinov2 import dinov2_from_config

TINY = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
TINY |= {"image_size": 20, "mlp_ratio": 2}


@pytest.mark.parametrize("gated", [False, True])
def test_dinov2_equals_that_of_transformers_at_its_own_size_and_others(gated, tmp_path) -> None:
    torch = pytest.importorskip("torch", reason="transformers, whose DINOv2 it is compared with")
    transformers = pytest.importorskip("transformers", reason="as above")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(**TINY, use_swiglu_ffn=gated)
    theirs = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    model, params = read_component(tmp_path, expected=("Dinov2Model",))
    for height, width in ((20, 20), (12, 12), (24, 16)):
        images = np.random.RandomState(height).standard_normal((2, height, width, 3))
        with torch.no_grad():
            x = torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32)
            expected = theirs(x).pooler_output.numpy()
        got = jax.jit(model.module.apply)(params, jnp.asarray(images, jnp.float32))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_dinov2_refuses_images_that_its_patches_do_not_divide() -> None:
    network = dinov2_from_config(TINY)
    with pytest.raises(ValueError, match="w multiples of 4; resize"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 10, 8, 3)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu', expected 'gelu'"),
        ({"num_attention_heads": 5}, "a width that the heads divide"),
        ({"num_register_tokens": 4}, "num_register_tokens=4 is no setting"),
        ({"image_size": [20, 16]}, "image_size"),
    ],
)
def test_dinov2_from_config_refuses_what_is_not_built(changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dinov2_from_config(TINY | changed)
