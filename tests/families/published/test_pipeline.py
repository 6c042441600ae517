"""model_index.json: what is read of it, and what is refused."""

import json
from pathlib import Path

import pytest

from dmd2_jax.families.published.pipeline import read_pipeline_index

SDXL = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SD15 = {**SDXL, "_class_name": "StableDiffusionPipeline"}


def write(folder: Path, index: object) -> Path:
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_read_pipeline_index_knows_both_text_parts_of_sdxl(tmp_path: Path) -> None:
    index = read_pipeline_index(write(tmp_path, SDXL))
    assert index.text_parts == (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    assert index.zero_null


def test_read_pipeline_index_knows_the_text_part_of_sd15(tmp_path: Path) -> None:
    index = read_pipeline_index(write(tmp_path, SD15))
    assert index.text_parts == (("tokenizer", "text_encoder"),)
    assert not index.zero_null


def test_read_pipeline_index_reads_how_no_prompt_is_embedded(tmp_path: Path) -> None:
    index = write(tmp_path, {**SDXL, "force_zeros_for_empty_prompt": False})
    assert not read_pipeline_index(index).zero_null


def test_read_pipeline_index_refuses_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model_index.json, expected the folder of a dif"):
        read_pipeline_index(tmp_path)


def test_read_pipeline_index_refuses_a_damaged_index(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": ')
    with pytest.raises(ValueError, match="cannot be read .* download it again"):
        read_pipeline_index(tmp_path)


def test_read_pipeline_index_refuses_another_pipeline(tmp_path: Path) -> None:
    folder = write(tmp_path, {**SDXL, "_class_name": "KandinskyPipeline"})
    with pytest.raises(
        ValueError, match="class 'KandinskyPipeline', expected StableDiffusionPipeline"
    ):
        read_pipeline_index(folder)


def test_read_pipeline_index_refuses_a_part_that_was_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path, {**SDXL, "text_encoder": [None, None]})
    with pytest.raises(ValueError, match=r"text_encoder = \[None, None\], expected CLIPTextModel"):
        read_pipeline_index(folder)


def test_part_refuses_a_missing_folder(tmp_path: Path) -> None:
    index = read_pipeline_index(write(tmp_path, SDXL))
    (tmp_path / "unet").mkdir()
    with pytest.raises(ValueError, match=r"has no part vae/, got \['unet'\], expected one as Auto"):
        index.part("vae")
