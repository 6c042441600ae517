"""Published classes: full-size shapes and names, names of other releases, what is refused."""

import functools
import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families.published import configs as published_configs
from dmd2_jax.families.published.model import PublishedModel, class_of, published_name
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from tests.families import tiny_models

# Parameters, tensors and SHA-256 of the sorted lines "name 320x4x3x3" of the state dict, made with
# diffusers 0.42.1 and transformers 5.23.0 ("text_model." added to the first text encoder's names).
PUBLISHED = {
    "SD15_UNET": (
        859_520_964,
        686,
        "a86ffab7c6f1ad19b0dd78fcf9eaf2a3428748ff87f04561c996e1091a17bf9d",
    ),
    "SDXL_UNET": (
        2_567_463_684,
        1680,
        "74f0e72e3fd82f55f08f872c033d9b35ade5289d932e06f985ece9c189f9b7cb",
    ),
    "SD_VAE": (
        83_653_863,
        248,
        "0afb81fba3b73b60202b280b4d2850d6bc8a9ce2e04de56b5960181cb619af8f",
    ),
    "TAESD": (
        2_445_063,
        134,
        "cf6edf83051ce0d491743dae8b3ce0f36f19a1486920690a96f973053b14c3d9",
    ),
    "CLIP_L_TEXT": (
        123_060_480,
        196,
        "0346501efc95df8012b73478f02ba6dadeeab4e129be045cf0c202bea79c5f1d",
    ),
    "OPENCLIP_BIGG_TEXT": (
        694_659_840,
        517,
        "e553816021d982ff3fddd7d01faf8ad833b7c8f2771f6784b88ea7769cf6012b",
    ),
}


@functools.cache
def full_size(name: str) -> dict[str, tuple[int, ...]]:
    return PublishedModel.from_config(
        getattr(published_configs, name), classes=CLASSES
    ).tensor_shapes()


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_parameter_count_is_the_published_one(name):
    count = sum(math.prod(shape) for shape in full_size(name).values())
    assert count == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_names_and_shapes_are_the_published_ones(name):
    shapes = full_size(name)
    lines = [f"{key} {'x'.join(map(str, shapes[key]))}" for key in sorted(shapes)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert (len(shapes), digest) == PUBLISHED[name][1:]


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_state_dict_lists_agree_with_the_library(name):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    config = dict(getattr(published_configs, name))
    with torch.device("meta"):
        if "_class_name" in config:
            network = getattr(diffusers, config.pop("_class_name")).from_config(config)
        else:
            kind = getattr(transformers, config.pop("architectures")[0])
            network = kind(transformers.CLIPTextConfig(**config))
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    if name == "CLIP_L_TEXT":  # transformers 5 leaves the prefix out, the publisher did not
        expected = {
            f"text_model.{key.removeprefix('text_model.')}": shape
            for key, shape in expected.items()
        }
    assert full_size(name) == expected


# Of the publishers' files: openai/clip-vit-base-patch32 and -large-patch14, and
# laion/CLIP-ViT-g-14-laion2B-s12B-b42K; the scale of the logits is one of them.
CLIP_MODELS = {
    "CLIP_B32": 151_277_313,
    "CLIP_L14": 427_616_513,
    "OPENCLIP_G14": 1_366_678_273,
}


@pytest.mark.parametrize("name", CLIP_MODELS)
def test_full_size_clip_models_have_the_published_parameter_count(name):
    assert sum(math.prod(shape) for shape in full_size(name).values()) == CLIP_MODELS[name]


@pytest.mark.parametrize("name", CLIP_MODELS)
def test_full_size_clip_models_embed_a_published_image_and_prompt(name):
    """Shapes alone: 224 pixels and 77 tokens."""
    model = PublishedModel.from_config(getattr(published_configs, name), classes=CLASSES)
    ids, images = jnp.zeros((2, 77), jnp.int32), jnp.zeros((3, 224, 224, 3))
    out = jax.eval_shape(model.module.apply, model.param_shapes(), ids, images)
    assert out.shape == (3, 2)  # the similarity of each image to each prompt


@pytest.mark.parametrize("name", CLIP_MODELS)
def test_full_size_clip_models_list_the_tensors_of_the_library(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(**getattr(published_configs, name))
    with torch.device("meta"):
        network = transformers.CLIPModel(config)
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert full_size(name) == expected


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
