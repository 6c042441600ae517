"""The family of FLUX.1, dev and schnell; time and conditions: families/published/flow_family.py."""

from dmd2_jax.families.flux.settings import defaults, faults
from dmd2_jax.families.flux.transformer_config import (
    CLASS_NAME,
    example_inputs,
    transformer_from_config,
)
from dmd2_jax.families.published.configs import (
    FLUX1_DEV,
    FLUX1_DEV_SCHEDULER,
    FLUX1_SCHNELL,
    FLUX1_SCHNELL_SCHEDULER,
)
from dmd2_jax.families.published.flow_family import FlowNetwork
from dmd2_jax.families.published.model import PublishedClass

__all__ = ["NETWORK", "PIPELINES", "READS", "build", "open_folder", "read"]

PIPELINES = {"FluxPipeline": 1.0}
"""The pipelines that hold such a transformer, with the guidance of two calls: none."""

READS = (CLASS_NAME,)
"""The classes of config.json that `read` opens."""

_CONFIGS = {
    "flux_dev": (FLUX1_DEV, FLUX1_DEV_SCHEDULER),
    "flux_schnell": (FLUX1_SCHNELL, FLUX1_SCHNELL_SCHEDULER),
}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_MLPS = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")

NETWORK = FlowNetwork(
    class_name=CLASS_NAME,
    published=PublishedClass(transformer_from_config, example_inputs, "diffusion_pytorch_model"),
    configs=_CONFIGS,
    defaults=defaults,
    faults=faults,
    time_scale=1.0,
    tokens=512,
    side=128,
    guided=False,
    lora_targets=(*_ATTENTION, *_ADDED, *_MLPS),
)

build, open_folder, read = NETWORK.build, NETWORK.open_folder, NETWORK.read
