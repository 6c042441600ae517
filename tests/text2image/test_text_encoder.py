"""Prompts to conditions: equal to the torch pipelines' encode_prompt."""

import functools
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.text2image.text_encoder import (
    TextEncoders,
    encode_prompts,
    null_condition,
    read_text_encoders,
    size_ids,
)
from tests.pipelines import CAPTIONS, tiny_pipeline

TEXTS = [*CAPTIONS[:4], "", "seven " * 100]
KINDS = ("sd15", "sdxl")


@functools.cache
def encoders(kind: str) -> TextEncoders:
    return read_text_encoders(tiny_pipeline(kind))


@functools.cache
def conditions(kind: str):
    return encode_prompts(encoders(kind), TEXTS, batch_size=4)


@functools.cache
def torch_conditions(kind: str) -> tuple[np.ndarray, ...]:
    """Embeddings of the texts and of no prompt, as diffusers' pipeline makes them."""
    import diffusers
    import torch

    pipeline = diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline(kind))
    with torch.no_grad():
        out = pipeline.encode_prompt(
            TEXTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    return tuple(x.numpy() for x in out)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_prompts_gives_the_pipelines_embeddings(kind: str) -> None:
    expected = torch_conditions(kind)[0]
    np.testing.assert_allclose(conditions(kind)["prompt_embeds"], expected, atol=1e-5)


def test_encode_prompts_gives_the_pipelines_pooled_embeddings() -> None:
    expected = torch_conditions("sdxl")[2]
    np.testing.assert_allclose(conditions("sdxl")["pooled"], expected, atol=1e-5)
    assert set(conditions("sd15")) == {"prompt_embeds"}


@pytest.mark.parametrize("kind", KINDS)
def test_null_condition_is_the_pipelines_negative_prompt(kind: str) -> None:
    expected = torch_conditions(kind)[1][:1]
    np.testing.assert_allclose(null_condition(encoders(kind))["prompt_embeds"], expected, atol=1e-5)


def test_null_condition_of_sdxl_is_zeros() -> None:
    null = null_condition(encoders("sdxl"))
    assert null["prompt_embeds"].shape == (1, 77, 40) and null["pooled"].shape == (1, 20)
    assert not any(x.any() for x in null.values())


def test_null_condition_of_sd15_is_the_empty_prompt() -> None:
    empty = conditions("sd15")["prompt_embeds"][TEXTS.index("")]
    null = null_condition(encoders("sd15"))["prompt_embeds"][0]
    np.testing.assert_allclose(null, empty, atol=1e-6)
    assert np.abs(null).max() > 0.1


def test_encode_prompts_warns_once_of_long_prompts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encode_prompts(encoders("sdxl"), TEXTS, batch_size=4)
    assert [r.getMessage()[:30] for r in caplog.records] == ["1 of 6 prompts have more than "]


def test_encode_prompts_refuses_no_prompts() -> None:
    with pytest.raises(ValueError, match="at least one"):
        encode_prompts(encoders("sd15"), [])


def test_size_ids_are_in_diffusers_order() -> None:
    # as StableDiffusionXLPipeline._get_add_time_ids: original_size + crops_coords + target_size
    assert size_ids((1, 2), (3, 4), (5, 6)).tolist() == [1, 2, 3, 4, 5, 6]


def test_read_text_encoders_refuses_a_tokenizer_of_another_encoder(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline("sdxl"), tmp_path / "sdxl"))
    path = folder / "text_encoder_2" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 3}))
    with pytest.raises(ValueError, match="tokenizer_2 ends a prompt by token .*, expected 3"):
        read_text_encoders(folder)


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2"])
def test_read_text_encoders_refuses_a_missing_part(part: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline("sdxl"), tmp_path / "sdxl"))
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=f"has no part {part}/"):
        read_text_encoders(folder)
