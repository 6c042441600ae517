"""The family of Qwen-Image; time and conditions: families/published/flow_family.py."""

from dmd2_jax.families.published.configs import QWEN_IMAGE, QWEN_IMAGE_SCHEDULER
from dmd2_jax.families.published.flow_family import FlowNetwork
from dmd2_jax.families.published.model import PublishedClass
from dmd2_jax.families.qwen_image.guidance import true_cfg
from dmd2_jax.families.qwen_image.settings import defaults, faults
from dmd2_jax.families.qwen_image.transformer import QwenImageTransformer
from dmd2_jax.families.qwen_image.transformer_config import (
    CLASS_NAME,
    example_inputs,
    tensor_name,
    transformer_from_config,
)

__all__ = ["NETWORK", "PIPELINES", "READS", "build", "open_folder", "read"]

PIPELINES = {"QwenImagePipeline": 4.0}
"""The pipelines that hold such a transformer, with diffusers' default guidance of each, which is
that of a call with a negative prompt; without one it has none."""

READS = (CLASS_NAME,)
"""The classes of config.json that `read` opens."""

_CONFIGS = {"qwen_image": (QWEN_IMAGE, QWEN_IMAGE_SCHEDULER)}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_MLPS = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")


def _parts(module: QwenImageTransformer, tokens: int) -> dict[str, tuple[int, ...]]:
    return {"prompt_embeds": (tokens, module.context_dim), "prompt_mask": (tokens,)}


NETWORK = FlowNetwork(
    class_name=CLASS_NAME,
    published=PublishedClass(
        transformer_from_config, example_inputs, "diffusion_pytorch_model", naming=tensor_name
    ),
    configs=_CONFIGS,
    defaults=defaults,
    faults=faults,
    parts=_parts,
    time_scale=1.0,
    tokens=512,
    side=128,
    guided=True,
    guide=true_cfg,
    lora_targets=(*_ATTENTION, *_ADDED, *_MLPS),
)

build, open_folder, read = NETWORK.build, NETWORK.open_folder, NETWORK.read
