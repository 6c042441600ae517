"""Complete tiny pipelines, made by diffusers and transformers themselves.

Random weights, published layouts: what a program reads or writes of these folders it does of the
published ones. The tokenizer is a real one, trained on the captions below.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from dmd2_jax.families.published.scheduler import recorded_as
from dmd2_jax.sampling.conditions import Prompts
from dmd2_jax.sampling.images import Model, SampledImages
from tests import llm_pipelines
from tests.data.images import picture, png, write_folder
from tests.tiny import scratch

# What imports this is skipped where the makers of the pipelines are missing.
for package in ("torch", "diffusers", "transformers", "tokenizers"):
    pytest.importorskip(package)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = tuple(f"a handwritten {word}" for word in DIGITS) + tuple(
    f"the digit {word}, written by hand" for word in DIGITS
)
COUNT = 10
"""Photos that a cache is made of."""
RESOLUTION = 16
"""Height and width of the pipelines' images; latents are of half the size."""

START, END = "<|startoftext|>", "<|endoftext|>"


@functools.cache
def tiny_pipeline(kind: str) -> Path:
    """Return the folder of a pipeline, by its maker below: "sd15", "sdxl", "sd3" and so on."""
    import torch

    makers = {
        "sd15": (_sd15, 15),
        "sdxl": (_sdxl, 21),
        "sd3": (_sd3, 3),
        "flux": (_flux, 1),
        "dit": (dit, 4),
        "flux2_klein": (llm_pipelines.flux2_klein, 2),
        "z_image": (lambda: llm_pipelines.z_image(lambda: _flow_vae(0.3611, 0.1159)), 6),
        "qwen_image": (llm_pipelines.qwen_image, 25),
    }
    make, seed = makers[kind]
    torch.manual_seed(seed)
    folder = scratch() / kind
    make().save_pretrained(folder)
    if kind == "sd15":  # in the layout of the published folders; sdxl keeps today's
        (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
        write_tokenizer(folder / "tokenizer")
    # No size is named in these; 1024 pixels take minutes.
    if kind in ("flux", "flux2_klein", "z_image", "qwen_image"):
        file = folder / "scheduler" / "scheduler_config.json"
        settings = json.loads(file.read_text()) | recorded_as(RESOLUTION // 2)
        file.write_text(json.dumps(settings))
    return folder


def diffusers_pipeline(folder: Path, **options):
    """Open a pipeline's folder by diffusers itself."""
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def lcm_images(pipeline, prompts: Sequence[str], noise: np.ndarray, **steps) -> np.ndarray:
    """Sample a pipeline with its LCMScheduler from given noises [s, b, h, w, c], in [0, 1]."""
    import torch

    noises = iter(torch.from_numpy(x.copy()) for x in noise.transpose(0, 1, 4, 2, 3))
    where = "diffusers.schedulers.scheduling_lcm.randn_tensor"
    with mock.patch(where, side_effect=lambda *_, **__: next(noises)):
        return pipeline(
            list(prompts), guidance_scale=0, latents=next(noises), output_type="np", **steps
        ).images


def drawn(
    model: Model,
    texts: Sequence[str],
    *,
    each: int = 1,
    seed: int = 0,
    negative: str | None = None,
    batch_size: int = 4,
) -> np.ndarray:
    """Sample images of prompts, [texts * each, h, w, 3], a prompt's one after another."""
    assert model.pipeline is not None
    conditions = Prompts(model.pipeline, texts, each=each, negative=negative)
    sizes = {"num": each * len(texts), "batch_size": batch_size}
    return SampledImages("x", "x", model, conditions, **sizes, seed=seed, timed=False).all()


def write_tokenizer(folder: Path, pad: str = END) -> Path:
    """Write vocab.json, merges.txt and tokenizer_config.json of a tokenizer of the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = vocabulary_and_merges()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    settings |= {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@functools.cache
def vocabulary_and_merges() -> tuple[dict[str, int], list[str]]:
    """Learn byte pairs of the captions; the vocabulary is laid out as CLIP's is."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=150, end_of_word_suffix="</w>", min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(CAPTIONS, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in learned]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, pairs)]
    tokens = [*dict.fromkeys(tokens), START, END]
    return {token: i for i, token in enumerate(tokens)}, [" ".join(pair) for pair in pairs]


def _tokenizer(pad: str = END):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(write_tokenizer(scratch() / "tokenizer", pad))


def _text_config(**settings):
    from transformers import CLIPTextConfig

    vocabulary, _ = vocabulary_and_merges()
    common = {"vocab_size": len(vocabulary), "max_position_embeddings": 77}
    common |= {"num_attention_heads": 2, "num_hidden_layers": 3, "bos_token_id": 0}
    return CLIPTextConfig(**common, **settings)


def _unet(**settings):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(1, 2),
        **settings,
    )


def _vae(scaling_factor: float):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=RESOLUTION,
        scaling_factor=scaling_factor,
    )


_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _sd15():
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    # 2, as the published config says, which is not the tokenizer's
    text = _text_config(hidden_size=16, intermediate_size=24, eos_token_id=2, pad_token_id=1)
    return StableDiffusionPipeline(
        vae=_vae(0.18215),
        text_encoder=CLIPTextModel(text),
        tokenizer=_tokenizer(),
        unet=_unet(
            cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=DDIMScheduler(
            **_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    end = vocabulary_and_merges()[0][END]
    first = _text_config(hidden_size=16, intermediate_size=24, eos_token_id=2, pad_token_id=1)
    second = _text_config(
        hidden_size=24,
        intermediate_size=32,
        hidden_act="gelu",
        projection_dim=20,
        eos_token_id=end,
        pad_token_id=0,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(0.13025),
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(pad="!"),
        unet=_unet(
            cross_attention_dim=16 + 24,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 20,
        ),
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _flow_vae(scaling_factor: float, shift_factor: float):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=6,
        sample_size=RESOLUTION,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _t5(width: int):
    """Return a T5 of the captions' letters and its tokenizer."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = sorted({letter for caption in CAPTIONS for letter in caption if letter != " "})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    tokenizer = T5Tokenizer(vocab=[*pieces, *((x, -3.0) for x in letters)], extra_ids=0)
    config = T5Config(
        vocab_size=len(pieces) + len(letters),
        d_model=width,
        d_kv=5,
        d_ff=14,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config), tokenizer


def _sd3():
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection

    end = vocabulary_and_merges()[0][END]
    sizes = {"hidden_size": 8, "intermediate_size": 12, "eos_token_id": end}
    t5, tokenizer = _t5(20)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=RESOLUTION // 2,
            in_channels=6,
            out_channels=6,
            num_layers=3,
            attention_head_dim=4,
            num_attention_heads=3,
            joint_attention_dim=20,
            caption_projection_dim=12,
            pooled_projection_dim=5 + 7,
            pos_embed_max_size=6,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_flow_vae(1.5305, 0.0609),
        text_encoder=CLIPTextModelWithProjection(_text_config(projection_dim=5, **sizes)),
        tokenizer=_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(
            _text_config(projection_dim=7, hidden_act="gelu", pad_token_id=0, **sizes)
        ),
        tokenizer_2=_tokenizer(pad="!"),
        text_encoder_3=t5,
        tokenizer_3=tokenizer,
    )


def dit(classes: int = 1000, layers: int = 1):
    """Make a DiTPipeline."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    return DiTPipeline(
        transformer=DiTTransformer2DModel(
            num_attention_heads=3,
            attention_head_dim=4,
            in_channels=6,
            out_channels=12,
            num_layers=layers,
            sample_size=RESOLUTION // 2,
            num_embeds_ada_norm=classes,
        ),
        vae=_flow_vae(0.7, 0.0),
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )


def _flux():
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    t5, tokenizer = _t5(20)
    text = _text_config(hidden_size=8, intermediate_size=12, eos_token_id=2, pad_token_id=1)
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=6 * 4,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=20,
            pooled_projection_dim=8,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_flow_vae(0.3611, 0.1159),
        text_encoder=CLIPTextModel(text),
        tokenizer=_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=tokenizer,
    )


@functools.cache
def photos() -> Path:
    """Ten captioned images of several sizes, the first of them square."""
    lines = [
        json.dumps({"file_name": f"{i}.png", "text": CAPTIONS[i]}).encode() for i in range(COUNT)
    ]
    files = {f"{i}.png": png(photo(i)) for i in range(COUNT)}
    return write_folder(scratch() / "photos", files | {"metadata.jsonl": b"\n".join(lines)})


def photo(i: int) -> np.ndarray:
    pixels = picture(i, side=RESOLUTION + 2 * (i // 2))
    return pixels[: RESOLUTION + i // 2]
