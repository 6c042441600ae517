"""The family of SD 3 and 3.5; its time and conditions: families/published/flow_family.py."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from dmd2_jax.families.published.configs import (
    SD3_MEDIUM,
    SD3_SCHEDULER,
    SD35_LARGE,
    SD35_MEDIUM,
)
from dmd2_jax.families.published.flow_family import FlowNetwork
from dmd2_jax.families.published.model import PublishedClass
from dmd2_jax.families.sd3.settings import defaults, faults
from dmd2_jax.families.sd3.transformer import SD3Transformer
from dmd2_jax.families.sd3.transformer_config import (
    CLASS_NAME,
    example_inputs,
    transformer_from_config,
)
from dmd2_jax.typing import DType

__all__ = ["NETWORK", "PIPELINES", "READS", "build", "open_folder", "read"]

PIPELINES = {"StableDiffusion3Pipeline": 7.0}
"""The pipelines that hold such a transformer, with diffusers' default guidance of each."""

READS = (CLASS_NAME,)
"""The classes of config.json that `read` opens."""

_CONFIGS = {
    "sd3_medium": (SD3_MEDIUM, SD3_SCHEDULER),
    "sd35_large": (SD35_LARGE, SD3_SCHEDULER),
    "sd35_medium": (SD35_MEDIUM, SD3_SCHEDULER),
}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")


def _transformer(config: Mapping[str, Any], dtype: DType, remat: str) -> nn.Module:
    return transformer_from_config(config, dtype=dtype, remat=remat)


def _patch(module: SD3Transformer) -> int:
    return module.patch


def _blocks(module: SD3Transformer) -> int:
    return module.depth


NETWORK = FlowNetwork(
    class_name=CLASS_NAME,
    published=PublishedClass(_transformer, example_inputs, "diffusion_pytorch_model"),
    configs=_CONFIGS,
    defaults=defaults,
    faults=faults,
    patch=_patch,
    blocks=_blocks,
    time_scale=1000.0,
    tokens=77 + 256,  # CLIP's and T5's
    side=128,
    guided=True,
    lora_targets=(*_ATTENTION, *_ADDED),
)

build, open_folder, read = NETWORK.build, NETWORK.open_folder, NETWORK.read
