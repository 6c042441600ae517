"""The published networks at full size, and what diffusers and transformers say their tensors are.

`python -m tests.families.full_size` writes recorded/full_size.json from their own modules, on
torch's meta device: no weights, and nothing of this package but the configs. It needs torch.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dmd2_jax.families.published import configs

RECORD = Path(__file__).parent / "recorded" / "full_size.json"

Shapes = dict[str, tuple[int, ...]]


class Model(NamedTuple):
    """A published network.

    Attributes:
      config: its config.json, as far as it describes the network.
      theirs: what its names begin with in their library, and not here.
      ours: what they begin with here, and not there.
      left_out: beginnings of the names that are not read here.
    """

    config: Mapping[str, Any]
    theirs: str = ""
    ours: str = ""
    left_out: tuple[str, ...] = ()


FLUX1_VAE = {
    **configs.SD_VAE,
    "latent_channels": 16,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
FLUX2_VAE = {
    "_class_name": "AutoencoderKLFlux2",
    "batch_norm_eps": 0.0001,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "latent_channels": 32,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "patch_size": [2, 2],
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
QWEN_IMAGE_VAE = {
    "_class_name": "AutoencoderKLQwenImage",
    "attn_scales": [],
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
}
T5_XXL = {
    "architectures": ["T5EncoderModel"],
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
}
QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 128,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
QWEN3_8B = QWEN3_4B | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "tie_word_embeddings": False,
}
QWEN25_VL_7B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
DIT_XL_2 = {
    "_class_name": "DiTTransformer2DModel",
    "attention_head_dim": 72,
    "in_channels": 4,
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
}
_CLIP_L_PROJECTED = {
    **configs.CLIP_L_TEXT,
    "architectures": ["CLIPTextModelWithProjection"],
}
_HEAD = ("lm_head.",)  # that writes the next token

MODELS = {
    "sd15_unet": Model(configs.SD15_UNET),
    "sdxl_unet": Model(configs.SDXL_UNET),
    "sd_vae": Model(configs.SD_VAE),
    "taesd": Model(configs.TAESD),
    # transformers 5 leaves the beginning out; release 4 and the publisher did not
    "clip_l_text": Model(configs.CLIP_L_TEXT, ours="text_model."),
    "clip_l_text_projected": Model(_CLIP_L_PROJECTED),
    "openclip_bigg_text": Model(configs.OPENCLIP_BIGG_TEXT),
    "clip_b32": Model(configs.CLIP_B32),
    "clip_l14": Model(configs.CLIP_L14),
    "openclip_g14": Model(configs.OPENCLIP_G14),
    "dit_xl_2": Model(DIT_XL_2),
    "sd3_medium": Model(configs.SD3_MEDIUM),
    "sd35_medium": Model(configs.SD35_MEDIUM),
    "sd35_large": Model(configs.SD35_LARGE),
    "flux1_dev": Model(configs.FLUX1_DEV),
    "flux1_schnell": Model(configs.FLUX1_SCHNELL),
    "flux1_vae": Model(FLUX1_VAE),
    "t5_xxl": Model(T5_XXL),
    "flux2_klein_4b": Model(configs.FLUX2_KLEIN_4B),
    "flux2_klein_9b": Model(configs.FLUX2_KLEIN_9B),
    "flux2_vae": Model(FLUX2_VAE, left_out=("bn.num_batches_tracked",)),
    "z_image": Model(configs.Z_IMAGE),
    "qwen3_4b": Model(QWEN3_4B, theirs="model."),  # of Z-Image and FLUX.2-klein 4B
    "qwen3_8b": Model(QWEN3_8B, theirs="model.", left_out=_HEAD),  # of FLUX.2-klein 9B
    "qwen_image": Model(configs.QWEN_IMAGE),
    "qwen_image_vae": Model(QWEN_IMAGE_VAE),
    "qwen25_vl_7b": Model(  # of Qwen-Image
        QWEN25_VL_7B, theirs="model.language_model.", left_out=("model.visual.", *_HEAD)
    ),
}
"""The networks of the pipelines that are read here, and CLIP's of their scores."""


def summary(shapes: Shapes) -> dict[str, Any]:
    """Return what identifies a list of tensors: their numbers, and the SHA-256 of its lines.

    A line is "name 320x4x3x3", sorted by name. `layers` counts those that are equal but for the
    numbers of blocks, so that a difference says where it is.
    """
    lines = [f"{name} {'x'.join(map(str, shapes[name]))}" for name in sorted(shapes)]
    layers = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", line) for line in lines)
    return {
        "parameters": _parameters(shapes.values()),
        "tensors": len(shapes),
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "layers": dict(sorted(layers.items())),
    }


def _parameters(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def their_tensors(model: Model) -> Shapes:
    """Return the tensors of diffusers' or transformers' module, by their names, each once."""
    import torch

    with torch.device("meta"):
        network = _network(dict(model.config))
    seen: dict[int, str] = {}
    shapes = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if seen.setdefault(id(tensor), name) == name:  # a table that two layers share is one
            shapes[name] = tuple(tensor.shape)
    return shapes


def _network(config: dict[str, Any]) -> Any:
    import diffusers
    import transformers

    if "_class_name" in config:
        return getattr(diffusers, config.pop("_class_name")).from_config(config)
    kind = getattr(transformers, config.pop("architectures")[0])
    return kind(kind.config_class(**config))


def read_here(model: Model, theirs: Shapes) -> Shapes:
    """Return those of their tensors that are read here, by our names."""
    kept = {name: it for name, it in theirs.items() if not name.startswith(model.left_out or "\0")}
    assert all(name.startswith(model.theirs) for name in kept)
    start = model.theirs or model.ours  # which some releases have there too
    return {f"{model.ours}{name.removeprefix(start)}": it for name, it in kept.items()}


def record(model: Model, theirs: Shapes) -> dict[str, Any]:
    """Return what recorded/full_size.json says of a network."""
    left_out = {}
    for start in model.left_out:
        shapes = [shape for name, shape in theirs.items() if name.startswith(start)]
        left_out[start] = {"parameters": _parameters(shapes), "tensors": len(shapes)}
    return summary(read_here(model, theirs)) | {"left_out": left_out}


def main() -> None:
    """Write the record."""
    import diffusers
    import torch
    import transformers

    made_by = {it.__name__: it.__version__ for it in (diffusers, torch, transformers)}
    records = {name: record(it, their_tensors(it)) for name, it in MODELS.items()}
    RECORD.write_text(json.dumps({"made_by": made_by} | records, indent=1) + "\n")


if __name__ == "__main__":
    main()
