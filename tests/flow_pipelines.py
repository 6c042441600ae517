"""Complete tiny pipelines of published flows, made without torch or diffusers."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dmd2_jax import families
from dmd2_jax.families.published.folder import write_component
from dmd2_jax.families.published.model import PublishedModel
from examples.captioned_digits.make import NAMES
from examples.captioned_digits.pipeline import write_tokenizer
from tests.data.images import picture, png, write_folder
from tests.tiny import scratch

RESOLUTION = 12
"""Height and width of the pipelines' images; latents are of half the size."""

CAPTIONS = tuple(f"a handwritten {name}" for name in NAMES)

_TOKENS = 7  # of CLIP's prompts

_SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": RESOLUTION // 2,
    "in_channels": 6,
    "out_channels": 6,
    "num_layers": 2,
    "attention_head_dim": 4,
    "num_attention_heads": 3,
    "joint_attention_dim": 20,
    "caption_projection_dim": 12,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 5,
    "dual_attention_layers": [0],
    "qk_norm": "rms_norm",
}
_FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 6 * 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 8,
    "guidance_embeds": True,
    "axes_dims_rope": [2, 2, 4],
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 6,
    "sample_size": RESOLUTION,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_T5 = {
    "architectures": ["T5EncoderModel"],
    "d_model": 20,
    "d_kv": 5,
    "d_ff": 14,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}
_Z_IMAGE = {
    "_class_name": "ZImageTransformer2DModel",
    "in_channels": 6,
    "dim": 16,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 12,
    "axes_dims": [2, 2, 4],
    "axes_lens": [600, 8, 8],
}
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "rope_theta": 1000000.0,
}
_FLUX2_KLEIN = {
    "_class_name": "Flux2Transformer2DModel",
    "in_channels": 12,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 3 * 12,
    "guidance_embeds": False,
    "axes_dims_rope": [2, 2, 2, 2],
    "timestep_guidance_channels": 16,
}
_FLUX2_VAE = {
    "_class_name": "AutoencoderKLFlux2",
    "block_out_channels": [4],  # the patches alone halve the image
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 3,
}
_QWEN_IMAGE = {
    "_class_name": "QwenImageTransformer2DModel",
    "in_channels": 6 * 4,
    "out_channels": 6,
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": [2, 2, 4],
}
_QWEN25_VL = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "text_config": {k: v for k, v in _QWEN3.items() if k not in ("architectures", "head_dim")},
}
_VIDEO_VAE = {
    "_class_name": "AutoencoderKLQwenImage",
    "base_dim": 4,
    "dim_mult": [1, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True],
    "z_dim": 6,
    "latents_mean": [0.1, -0.2, 0.3, -0.4, 0.5, -0.6],
    "latents_std": [1.1, 0.9, 1.2, 0.8, 1.3, 0.7],
}
CHAT = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
"""Qwen3's template of a chat, without tools and history."""

_SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}


_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "sd3": _SD3,
    "flux": _FLUX,
    "flux2_klein": _FLUX2_KLEIN,
    "z_image": _Z_IMAGE,
    "qwen_image": _QWEN_IMAGE,
}


@functools.cache
def flow_pipeline(kind: str) -> Path:
    """Return the folder of a pipeline, a key of `_TRANSFORMERS`; do not change it."""
    folder = scratch() / kind
    vaes = {"flux2_klein": _FLUX2_VAE, "qwen_image": _VIDEO_VAE}
    parts: dict[str, Mapping[str, Any]] = {"vae": vaes.get(kind, _VAE)}
    if kind in ("flux2_klein", "z_image", "qwen_image"):
        sizes = {"vocab_size": write_llm_tokenizer(folder / "tokenizer")}
        sizes |= {"num_hidden_layers": 28} if kind == "flux2_klein" else {}  # whose 27th is read
        parts["text_encoder"] = (_QWEN25_VL if kind == "qwen_image" else _QWEN3) | sizes
    else:
        parts |= _clips_and_t5(folder, kind)
    for part, config in parts.items():
        model = PublishedModel.from_config(config)
        write_component(model, random_weights(model.param_shapes()), folder / part)
    shift = {"shift": 3.0} | ({"use_dynamic_shifting": True} if "flux" in kind else {})
    shift |= {"shift_terminal": 0.02} if kind == "qwen_image" else {}
    own, scheduler = _TRANSFORMERS[kind], _SCHEDULER | shift
    settings = {"transformer": own, "scheduler": scheduler, "resolution": RESOLUTION // 2}
    family = getattr(families, kind).build(settings)
    family.save(random_weights(family.param_shapes()), folder / "transformer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(_index(kind, parts)))
    return folder


def _clips_and_t5(folder: Path, kind: str) -> dict[str, Mapping[str, Any]]:
    """Write the tokenizers of SD 3 or FLUX.1 and return the configs of their text encoders."""
    end = len(write_tokenizer(folder / "tokenizer", CAPTIONS, _TOKENS)) - 1
    clip = {
        "architectures": ["CLIPTextModelWithProjection" if kind == "sd3" else "CLIPTextModel"],
        "vocab_size": end + 1,
        "eos_token_id": end,
        "hidden_size": 8,
        "intermediate_size": 12,
        "max_position_embeddings": _TOKENS,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    t5 = "text_encoder_3" if kind == "sd3" else "text_encoder_2"
    parts = {"text_encoder": clip | {"projection_dim": 5}}
    if kind == "sd3":
        write_tokenizer(folder / "tokenizer_2", CAPTIONS, _TOKENS)
        parts["text_encoder_2"] = clip | {"projection_dim": 7}
    parts[t5] = _T5 | {"vocab_size": _write_t5_tokenizer(folder / f"tokenizer{t5[-2:]}")}
    return parts


def random_weights(shapes: Any) -> Any:
    """Draw weights of every layer, also of those that a network's own initial ones leave at 0."""
    random = np.random.RandomState(0)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        fan_in = int(np.prod(shape.shape[:-1])) or 1
        values = random.standard_normal(shape.shape).astype(np.float32)
        near_one = any(name in str(path[-1]) for name in ("scale", "running_var"))
        return 1 + 0.1 * values if near_one else values / fan_in**0.5

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _index(kind: str, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    name = {
        "sd3": "StableDiffusion3Pipeline",
        "flux": "FluxPipeline",
        "flux2_klein": "Flux2KleinPipeline",
        "z_image": "ZImagePipeline",
        "qwen_image": "QwenImagePipeline",
    }[kind]
    own = _TRANSFORMERS[kind]["_class_name"]
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": "0.42.1"}
    index |= {
        part: ["transformers", config["architectures"][0]]
        for part, config in parts.items()
        if part != "vae"
    }
    for part in list(index):
        if part.startswith("text_encoder"):
            kinds = {"T5En": "T5Tokenizer", "Qwen": "Qwen2Tokenizer", "CLIP": "CLIPTokenizer"}
            kind_of = kinds[index[part][1][:4]]
            index[part.replace("text_encoder", "tokenizer")] = ["transformers", kind_of]
    index["vae"] = ["diffusers", parts["vae"]["_class_name"]]
    index["transformer"] = ["diffusers", own]
    index["scheduler"] = ["diffusers", _SCHEDULER["_class_name"]]
    return index


def _write_t5_tokenizer(folder: Path) -> int:
    """Write a tokenizer of the captions' letters and return the size of its vocabulary."""
    from transformers import T5Tokenizer

    letters = sorted({letter for caption in CAPTIONS for letter in caption if letter != " "})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocabulary = [*pieces, *((letter, -3.0) for letter in letters)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)
    return len(vocabulary)


def write_llm_tokenizer(folder: Path) -> int:
    """Write a tokenizer as Qwen's, of single bytes, and return the size of its vocabulary."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "<|endoftext|>"])}
    more = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=more)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@functools.cache
def photos() -> Path:
    """Images with captions."""
    lines = [json.dumps({"file_name": f"{i}.png", "text": text}) for i, text in enumerate(CAPTIONS)]
    files = {f"{i}.png": png(picture(i, side=RESOLUTION)) for i in range(len(CAPTIONS))}
    return write_folder(scratch() / "photos", files | {"metadata.jsonl": "\n".join(lines).encode()})
