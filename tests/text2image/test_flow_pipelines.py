"""SD 3's and FLUX.1's pipelines: prompts and images as diffusers' own pipelines have them."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.families import flux
from dmd2_jax.families.flux.transformer import pack
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


def _drop(index: Path, part: str) -> None:
    index.write_text(json.dumps(json.loads(index.read_text()) | {part: [None, None]}))


def test_flux_without_t5_is_refused_by_name(tmp_path):
    folder = shutil.copytree(tiny_pipeline("flux"), tmp_path / "flux")
    _drop(folder / "model_index.json", "text_encoder_2")
    with pytest.raises(ValueError, match=r"text_encoder_2 = \[None, None\]"):
        read_text_encoders(folder)


def test_images_of_a_teacher_are_those_of_diffusers_flux():
    import torch

    side, folder = RESOLUTION // 2, tiny_pipeline("flux")
    family, params = flux.read(folder, resolution=side)
    pipeline = open_pipeline(folder, latent_size=side)
    sampler = ddim_sampler(
        family.denoiser, pipeline.scheduler, steps=3, guidance=None, tokens=family.image_tokens
    )
    noise = np.random.default_rng(0).normal(size=(1, 1, *family.image_shape)).astype(np.float32)
    latents = sampler.run(params, noise, family.cond(pipeline.condition(CAPTIONS[:1])))
    ours = np.asarray(decode(pipeline.vae, pipeline.vae_params, latents))
    packed = np.asarray(pack(noise[0])).reshape(1, family.image_tokens, -1)
    with torch.no_grad():
        images = (
            theirs("flux")(
                CAPTIONS[0],
                height=RESOLUTION,
                width=RESOLUTION,
                num_inference_steps=3,
                guidance_scale=3.5,
                latents=torch.from_numpy(packed.copy()),
                output_type="np",
            )
        ).images
    assert np.abs(np.clip(ours / 2 + 0.5, 0, 1) - images).max() < 1e-4
    assert images.std() > 0.05
