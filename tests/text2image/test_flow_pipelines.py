"""Pipelines of published flows: prompts and images as diffusers' own pipelines have them."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax import families
from dmd2_jax.networks.packing import pack
from dmd2_jax.sampling.samplers import ddim_sampler
from dmd2_jax.text2image.pipeline import decode, open_pipeline
from dmd2_jax.text2image.text_encoder import encode_prompts, read_text_encoders
from tests.conformance.derive import relative
from tests.pipelines import CAPTIONS, RESOLUTION, diffusers_pipeline, tiny_pipeline

TEXTS = [*CAPTIONS[:2], "", "seven " * 100]
KINDS = ("sd3", "flux")


@functools.cache
def theirs(kind: str):
    """Return diffusers' pipeline."""
    return diffusers_pipeline(tiny_pipeline(kind))


def torch_condition(pipeline) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and the vector of the texts, as diffusers' pipeline makes them."""
    import torch

    with torch.no_grad():
        if "StableDiffusion3" in type(pipeline).__name__:
            embeds, _, pooled, _ = pipeline.encode_prompt(TEXTS, None, None, device="cpu")
        else:
            embeds, pooled, _ = pipeline.encode_prompt(TEXTS, None, device="cpu")
    return embeds.numpy(), pooled.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_encoded_as_the_pipeline_encodes_them(kind):
    actual = encode_prompts(read_text_encoders(tiny_pipeline(kind)), TEXTS, batch_size=4)
    embeds, pooled = torch_condition(theirs(kind))
    assert actual["prompt_embeds"].shape == embeds.shape
    assert relative(actual["prompt_embeds"], embeds) < 1e-5
    assert relative(actual["pooled"], pooled) < 1e-5


def test_prompts_without_t5_end_in_zeros_as_the_pipeline_has_them(tmp_path):
    folder = shutil.copytree(tiny_pipeline("sd3"), tmp_path / "sd3")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
        _drop(folder / "model_index.json", part)
    actual = encode_prompts(read_text_encoders(folder), TEXTS, batch_size=4)
    pipeline = type(theirs("sd3"))(
        **theirs("sd3").components | {"text_encoder_3": None, "tokenizer_3": None}
    )
    embeds, pooled = torch_condition(pipeline)
    assert actual["prompt_embeds"].shape == embeds.shape
    assert relative(actual["prompt_embeds"], embeds) < 1e-5
    assert relative(actual["pooled"], pooled) < 1e-5


def test_prompts_of_z_image_are_encoded_as_the_pipeline_encodes_them():
    import torch

    encoders = read_text_encoders(tiny_pipeline("z_image")).fitted(TEXTS)
    actual = encode_prompts(encoders, TEXTS, batch_size=4)
    with torch.no_grad():
        embeds, empty = theirs("z_image").encode_prompt(list(TEXTS), device="cpu")
    assert len({len(one) for one in embeds}) == 4 and len(empty[0]) == len(embeds[2])
    for row, mask, one in zip(actual["prompt_embeds"], actual["prompt_mask"], embeds, strict=True):
        assert relative(row[mask > 0], one.numpy()) < 1e-5


def test_prompts_of_klein_are_encoded_with_their_filling_as_the_pipeline_encodes_them():
    import torch

    encoders = read_text_encoders(tiny_pipeline("flux2_klein")).fitted(TEXTS)
    actual = encode_prompts(encoders, TEXTS, batch_size=4)
    with torch.no_grad():
        embeds = theirs("flux2_klein").encode_prompt(list(TEXTS), device="cpu")[0].numpy()
    assert set(actual) == {"prompt_embeds"} and embeds.shape == (4, 512, 36)
    assert relative(actual["prompt_embeds"], embeds) < 1e-5
    filling = embeds[:3, 100:]  # says which prompt it is behind, so no null of one row will do
    assert np.abs(filling[0] - filling[2]).max() > 1e-3


def test_prompts_of_qwen_image_are_encoded_as_the_pipeline_encodes_them():
    import torch

    encoders = read_text_encoders(tiny_pipeline("qwen_image")).fitted(TEXTS)
    actual = encode_prompts(encoders, TEXTS, batch_size=4)
    with torch.no_grad():
        told = {"device": "cpu", "max_sequence_length": 512}
        embeds, mask = theirs("qwen_image").encode_prompt(list(TEXTS), **told)
    assert embeds.shape[1] == actual["prompt_embeds"].shape[1] == 512
    np.testing.assert_array_equal(actual["prompt_mask"], mask.numpy())
    assert len(set(mask.sum(1).tolist())) == 4
    assert relative(actual["prompt_embeds"], embeds.numpy()) < 1e-5


def _drop(index: Path, part: str) -> None:
    index.write_text(json.dumps(json.loads(index.read_text()) | {part: [None, None]}))


def test_flux_without_t5_is_refused_by_name(tmp_path):
    folder = shutil.copytree(tiny_pipeline("flux"), tmp_path / "flux")
    _drop(folder / "model_index.json", "text_encoder_2")
    with pytest.raises(ValueError, match=r"text_encoder_2 = \[None, None\]"):
        read_text_encoders(folder)


QWEN = {"true_cfg_scale": 3.0, "negative_prompt": "a dark blot"}


@pytest.mark.parametrize(
    "kind, guidance, told",
    [
        ("flux", None, {"guidance_scale": 3.5}),
        ("flux2_klein", 3.0, {"guidance_scale": 3.0}),
        ("z_image", 3.0, {"guidance_scale": 2.0}),
        ("qwen_image", 3.0, QWEN),
    ],
)
def test_images_of_a_teacher_are_those_of_diffusers(kind, guidance, told):
    """Z-Image's guidance is pos + w (pos - neg): 2 there is 3 of neg + w (pos - neg) here.

    Qwen-Image's is rescaled to the length of pos, and its last sigma is 0.02.
    """
    import torch

    side, folder = RESOLUTION // 2, tiny_pipeline(kind)
    family, params = families.read(folder, resolution=side)
    pipeline = open_pipeline(folder, latent_size=side)
    sampler = ddim_sampler(
        family.denoiser, pipeline.scheduler, steps=3, guidance=guidance, tokens=family.image_tokens
    )
    noise = np.random.default_rng(0).normal(size=(1, 1, *family.image_shape)).astype(np.float32)
    cond = pipeline.condition(CAPTIONS[:1], told.get("negative_prompt"))
    latents = sampler.run(params, noise, family.cond(cond))
    ours = np.asarray(decode(pipeline.vae, pipeline.vae_params, latents))
    packed = noise[0].transpose(0, 3, 1, 2)
    if kind in ("flux", "qwen_image"):
        packed = np.asarray(pack(noise[0])).reshape(1, family.image_tokens, -1)
    with torch.no_grad():
        images = (
            theirs(kind)(
                prompt=CAPTIONS[0],
                height=RESOLUTION,
                width=RESOLUTION,
                num_inference_steps=3,
                **told,
                latents=torch.from_numpy(packed.copy()),
                output_type="np",
            )
        ).images
    assert np.abs(np.clip(ours / 2 + 0.5, 0, 1) - images).max() < 1e-4
    assert images.std() > 0.05
