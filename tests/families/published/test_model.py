"""Published classes: names of other releases, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families.published.model import PublishedModel, class_of, published_name
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from tests.families import tiny_models


def drawn(model: PublishedModel) -> dict[str, np.ndarray]:
    """Draw tensors of a network's names and shapes."""
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in model.tensor_shapes().items()
    }


def assert_equal_trees(actual, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_published_name_spells_list_indices_with_dots():
    path = ("params", "up_blocks_1", "attentions_0", "attn1", "to_out_0", "kernel")
    assert published_name(path) == "up_blocks.1.attentions.0.attn1.to_out.0.weight"


def test_published_name_keeps_linear_1():
    path = ("params", "time_embedding", "linear_1", "bias")
    assert published_name(path) == "time_embedding.linear_1.bias"


def test_from_tensors_transposes_what_torch_transposes():
    model = PublishedModel.from_config(tiny_models.TEXT)
    tensors = drawn(model)
    params = model.from_tensors(tensors)["params"]["text_model"]
    linear = "text_model.encoder.layers.1.mlp.fc1.weight"
    np.testing.assert_array_equal(
        params["encoder"]["layers_1"]["mlp"]["fc1"]["kernel"], tensors[linear].T
    )
    table = "text_model.embeddings.token_embedding.weight"
    np.testing.assert_array_equal(
        params["embeddings"]["token_embedding"]["embedding"], tensors[table]
    )


def test_from_tensors_reads_text_models_without_prefix():
    model = PublishedModel.from_config(tiny_models.TEXT)
    tensors = drawn(model)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    assert_equal_trees(model.from_tensors(bare), model.from_tensors(tensors))


def test_from_tensors_reads_text_models_with_stored_positions():
    model = PublishedModel.from_config(tiny_models.TEXT)
    tensors = drawn(model)
    old = tensors | {"text_model.embeddings.position_ids": np.arange(6)[None]}
    assert_equal_trees(model.from_tensors(old), model.from_tensors(tensors))


@pytest.mark.parametrize("convolutions", [False, True], ids=["linear", "convolution"])
def test_from_tensors_reads_autoencoders_with_old_attention_names(convolutions):
    model = PublishedModel.from_config(tiny_models.VAE)
    tensors, old = drawn(model), {}
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name, tensor in tensors.items():
        for new, before in renamed.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{before}.")
                if convolutions and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
        old[name] = tensor
    assert set(old) != set(tensors)
    assert_equal_trees(model.from_tensors(old), model.from_tensors(tensors))


def test_from_tensors_lists_what_does_not_fit():
    model = PublishedModel.from_config(tiny_models.UNET, classes=CLASSES)
    tensors = drawn(model)
    del tensors["conv_in.bias"]
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:4]
    tensors["extra.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="UNet2DConditionModel: weights do not fit") as error:
        model.from_tensors(tensors)
    message = str(error.value)
    assert "1 missing: conv_in.bias" in message
    assert "1 extra: 'extra.weight'" in message or "1 extra: extra.weight" in message
    assert "conv_in.weight (got (4, 4, 3, 3), expected (8, 4, 3, 3))" in message


def test_to_tensors_writes_bare_names_where_they_were_read():
    model = PublishedModel.from_config(tiny_models.TEXT)
    tensors = drawn(model)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    for given in (tensors, bare):
        written = model.spelled_as(given).to_tensors(model.from_tensors(given))
        assert sorted(written) == sorted(given)


def test_class_of_refuses_an_unknown_class():
    with pytest.raises(ValueError, match="class 'FluxTransformer2DModel', expected"):
        class_of({"_class_name": "FluxTransformer2DModel"})


def test_class_of_refuses_a_class_that_will_not_do():
    with pytest.raises(ValueError, match="'AutoencoderKL', expected 'UNet2DConditionModel'"):
        class_of(tiny_models.VAE, expected=("UNet2DConditionModel",))


def test_from_config_refuses_remat_of_an_encoder():
    with pytest.raises(ValueError, match="only the denoising network"):
        PublishedModel.from_config(tiny_models.TEXT, remat="block")


def test_compute_dtype_leaves_weights_and_outputs_float32():
    model = PublishedModel.from_config(tiny_models.SDXL_UNET, classes=CLASSES, dtype=jnp.bfloat16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.param_shapes())} == {"float32"}
    out = jax.eval_shape(model.module.apply, model.param_shapes(), *model.example_inputs())
    assert out.dtype == jnp.float32
