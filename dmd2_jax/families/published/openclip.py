"""OpenCLIP's names of CLIP's tensors, and transformers'.

| OpenCLIP                          | transformers                                 |
|-----------------------------------|----------------------------------------------|
| `transformer.resblocks.N.`        | `text_model.encoder.layers.N.`               |
| `visual.transformer.resblocks.N.` | `vision_model.encoder.layers.N.`             |
| `attn.in_proj_`, one of q, k, v   | `self_attn.q_proj.`, `k_proj.`, `v_proj.`    |
| `text_projection`                 | `text_projection.weight`, transposed         |
| `visual.proj`                     | `visual_projection.weight`, transposed       |
"""

import re

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.weights.state_dict import Tensors
from dmd2_jax.weights.unpickle import shown

__all__ = ["from_openclip", "text_to_openclip"]

_TEXT = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_VISION = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
}
_TRANSPOSED = ("text_projection.weight", "visual_projection.weight")
_TEXT_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_THEIR_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_MODULES = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_JOINED, _MASK = "attn.in_proj", "attn_mask"


def text_to_openclip(tensors: Tensors) -> dict[str, np.ndarray]:
    """Return a text encoder's tensors as OpenCLIP calls them: q, k and v are one there.

    Args:
      tensors: as transformers calls them.

    Raises:
      Refused: if one is none of CLIP's.
    """
    made: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name in _TEXT:
            made[_TEXT[name]] = tensor.T if name in _TRANSPOSED else tensor
            continue
        match = _TEXT_LAYER.fullmatch(name)
        if match is None:
            raise Refused(
                f"the text encoder has {shown(name)}, expected CLIP's tensors; take another base."
            )
        number, module, end = match.groups()
        layer = f"transformer.resblocks.{number}"
        if module in _MODULES:
            made[f"{layer}.{_MODULES[module]}.{end}"] = tensor
        elif module == "self_attn.q_proj":
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            made[f"{layer}.{_JOINED}_{end}"] = np.concatenate(parts)
    return made


def from_openclip(tensors: Tensors) -> dict[str, np.ndarray]:
    """Return the tensors of both encoders as transformers' CLIPModel calls them.

    Args:
      tensors: as OpenCLIP calls them; what is none of CLIP's keeps its name.
    """
    names = {theirs: ours for ours, theirs in (_TEXT | _VISION).items()}
    modules = {theirs: ours for ours, theirs in _MODULES.items()}
    made: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name == _MASK:  # of causal attention, which some files keep
            continue
        own = names.get(name, name)
        match = _THEIR_LAYER.fullmatch(name)
        if match is None:
            made[own] = tensor.T if own in _TRANSPOSED else tensor
            continue
        visual, number, module, end = match.groups()
        layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
        if module == _JOINED:
            for part, one in zip("qkv", np.split(tensor, 3), strict=True):
                made[f"{layer}.self_attn.{part}_proj.{end}"] = one
        else:
            made[f"{layer}.{modules.get(module, module)}.{end}"] = tensor
    return made
