"""The family of SD 3 and 3.5; its time and conditions: families/published/flow_family.py."""

from dmd2_jax.families.published.configs import (
    SD3_MEDIUM,
    SD3_SCHEDULER,
    SD35_LARGE,
    SD35_MEDIUM,
)
from dmd2_jax.families.published.flow_family import FlowNetwork
from dmd2_jax.families.published.model import PublishedClass
from dmd2_jax.families.sd3.settings import defaults, faults
from dmd2_jax.families.sd3.transformer_config import (
    CLASS_NAME,
    example_inputs,
    transformer_from_config,
)

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

NETWORK = FlowNetwork(
    class_name=CLASS_NAME,
    published=PublishedClass(transformer_from_config, example_inputs, "diffusion_pytorch_model"),
    configs=_CONFIGS,
    defaults=defaults,
    faults=faults,
    time_scale=1000.0,
    tokens=77 + 256,  # CLIP's and T5's
    side=128,
    guided=True,
    lora_targets=(*_ATTENTION, *_ADDED),
)

build, open_folder, read = NETWORK.build, NETWORK.open_folder, NETWORK.read
