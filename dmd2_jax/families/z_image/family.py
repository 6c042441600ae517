"""The family of Z-Image; time and conditions: families/published/flow_family.py."""

from dmd2_jax.families.published.configs import Z_IMAGE, Z_IMAGE_SCHEDULER
from dmd2_jax.families.published.flow_family import FlowNetwork
from dmd2_jax.families.published.model import PublishedClass
from dmd2_jax.families.z_image.settings import defaults, faults
from dmd2_jax.families.z_image.transformer import ZImageTransformer
from dmd2_jax.families.z_image.transformer_config import (
    CLASS_NAME,
    example_inputs,
    tensor_name,
    transformer_from_config,
)

__all__ = ["NETWORK", "PIPELINES", "READS", "build", "open_folder", "read"]

PIPELINES = {"ZImagePipeline": 6.0}
"""The pipelines that hold such a transformer, with diffusers' default guidance of each: their 5.0
of pos + w (pos - neg) is 6.0 of neg + w (pos - neg)."""

READS = (CLASS_NAME,)
"""The classes of config.json that `read` opens."""

_CONFIGS = {"z_image": (Z_IMAGE, Z_IMAGE_SCHEDULER)}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


def _parts(module: ZImageTransformer, tokens: int) -> dict[str, tuple[int, ...]]:
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
    backwards=True,
    tokens=512,
    side=128,
    guided=True,
    lora_targets=(*_ATTENTION, *_FEED_FORWARD),
    time_layer="t_embedder.mlp_2",
    guidance_layer="t_embedder.mlp_0",
)

build, open_folder, read = NETWORK.build, NETWORK.open_folder, NETWORK.read
