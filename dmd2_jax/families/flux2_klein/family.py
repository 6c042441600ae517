"""The family of FLUX.2-klein; time and conditions: families/published/flow_family.py."""

from dmd2_jax.families.flux2_klein.settings import defaults, faults
from dmd2_jax.families.flux2_klein.transformer import Flux2Transformer
from dmd2_jax.families.flux2_klein.transformer_config import (
    CLASS_NAME,
    example_inputs,
    transformer_from_config,
)
from dmd2_jax.families.published.configs import FLUX2_KLEIN_4B, FLUX2_KLEIN_9B, FLUX2_SCHEDULER
from dmd2_jax.families.published.flow_family import FlowNetwork
from dmd2_jax.families.published.flow_scheduler import PIPELINE_SHIFTS
from dmd2_jax.families.published.model import PublishedClass

__all__ = ["NETWORK", "PIPELINES", "READS", "build", "open_folder", "read"]

PIPELINES = {"Flux2KleinPipeline": 4.0}
"""The pipelines that hold such a transformer, with diffusers' default guidance of each."""

READS = (CLASS_NAME,)
"""The classes of config.json that `read` opens."""

_CONFIGS = {
    "klein_4b": (FLUX2_KLEIN_4B, FLUX2_SCHEDULER),
    "klein_9b": (FLUX2_KLEIN_9B, FLUX2_SCHEDULER),
}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_SINGLE = ("attn.to_qkv_mlp_proj", "attn.to_out")
_GATED = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")


def _parts(module: Flux2Transformer, tokens: int) -> dict[str, tuple[int, ...]]:
    return {"prompt_embeds": (tokens, module.context_dim)}


NETWORK = FlowNetwork(
    class_name=CLASS_NAME,
    published=PublishedClass(transformer_from_config, example_inputs, "diffusion_pytorch_model"),
    configs=_CONFIGS,
    defaults=defaults,
    faults=faults,
    parts=_parts,
    time_scale=1.0,
    tokens=512,
    side=64,
    guided=True,
    scheduler_notes=PIPELINE_SHIFTS["Flux2KleinPipeline"],
    lora_targets=(*_ATTENTION, *_ADDED, *_SINGLE, *_GATED),
)

build, open_folder, read = NETWORK.build, NETWORK.open_folder, NETWORK.read
