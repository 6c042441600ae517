"""Every tensor of the published networks: the whole list of names and shapes, by its digest.

families/recorded/full_size.json is of diffusers' and transformers' own modules, by
families/full_size.py. Where they are, the lists themselves are compared.
"""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from dmd2_jax.families import sit, stable_diffusion
from dmd2_jax.families.flux.family import NETWORK as FLUX1
from dmd2_jax.families.flux2_klein.family import NETWORK as FLUX2
from dmd2_jax.families.published.model import CLASSES, PublishedModel
from dmd2_jax.families.qwen_image.family import NETWORK as QWEN_IMAGE
from dmd2_jax.families.sd3.family import NETWORK as SD3
from dmd2_jax.families.stable_diffusion.classes import CLASSES as UNETS
from dmd2_jax.families.z_image.family import NETWORK as Z_IMAGE
from tests.families.full_size import MODELS, RECORD, read_here, record, summary, their_tensors

RECORDED = json.loads(RECORD.read_text())
FLOWS = (SD3, FLUX1, FLUX2, Z_IMAGE, QWEN_IMAGE)
NAMED = {
    "sd15": "sd15_unet",
    "sdxl": "sdxl_unet",
    "sd3_medium": "sd3_medium",
    "sd35_medium": "sd35_medium",
    "sd35_large": "sd35_large",
    "flux_dev": "flux1_dev",
    "flux_schnell": "flux1_schnell",
    "klein_4b": "flux2_klein_4b",
    "klein_9b": "flux2_klein_9b",
    "z_image": "z_image",
    "qwen_image": "qwen_image",
}
"""What a config.model.pipeline means, of MODELS."""


@functools.cache
def full_size(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's tensors here."""
    config = MODELS[name].config
    classes = CLASSES | UNETS | {it.class_name: it.published for it in FLOWS}
    if config.get("_class_name") in sit.READS:
        return sit.build({"transformer": config}).tensor_shapes()
    return PublishedModel.from_config(config, classes=classes).tensor_shapes()


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_the_published_network_is_here_and_no_other(name):
    here = summary(full_size(name))
    expected = {key: it for key, it in RECORDED[name].items() if key != "left_out"}
    differ = here["layers"].items() ^ expected["layers"].items()
    assert here == expected, f"{here['tensors']} tensors here; these differ: {sorted(differ)[:8]}"


def test_names_of_published_shapes_mean_those_networks():
    known = {name: config for it in FLOWS for name, (config, _) in it.configs.items()}
    for name in ("sd15", "sdxl"):
        known[name] = stable_diffusion.build({"pipeline": f"published:{name}"}).model.config
    assert known == {name: MODELS[network].config for name, network in NAMED.items()}


@pytest.mark.parametrize("name", MODELS)
def test_list_of_tensors_is_the_librarys(name):
    pytest.importorskip("torch", reason="diffusers' and transformers' modules are in torch")
    pytest.importorskip("diffusers", reason="it is what is compared with")
    pytest.importorskip("transformers", reason="it is what is compared with")
    theirs = their_tensors(MODELS[name])
    assert full_size(name) == read_here(MODELS[name], theirs)
    assert record(MODELS[name], theirs) == RECORDED[name]


def test_clip_embeds_a_published_image_and_prompt():
    """Shapes alone: 224 pixels and 77 tokens."""
    model = PublishedModel.from_config(MODELS["clip_b32"].config)
    ids, images = jnp.zeros((2, 77), jnp.int32), jnp.zeros((3, 224, 224, 3))
    out = jax.eval_shape(model.module.apply, model.param_shapes(), ids, images)
    assert out.shape == (3, 2)  # the similarity of each image to each prompt
