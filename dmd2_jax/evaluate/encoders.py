"""Published image encoders as feature networks beside the others: CLIP's and DINOv2's."""

import functools
from pathlib import Path

import jax
from jax.sharding import Mesh

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.folder import read_component, read_component_config
from dmd2_jax.metrics.features.clip import clip_preparation
from dmd2_jax.metrics.features.extractor import Extractor
from dmd2_jax.networks.clip import Clip, ClipVision
from dmd2_jax.networks.dinov2 import Dinov2
from dmd2_jax.runtime.integrity import params_digest
from dmd2_jax.sampling.images import whole_batch
from dmd2_jax.typing import Array, Params

__all__ = ["CLASSES", "encoder_name", "open_encoder"]

CLASSES = ("CLIPModel", "CLIPVisionModelWithProjection", "Dinov2Model")
"""What a folder may hold, as transformers calls it."""

_BATCH = 64
_PREPROCESSOR = "preprocessor_config.json"


def encoder_name(folder: str) -> str:
    """Return what the figures of an encoder are called: its folder."""
    return Path(folder).absolute().name


def open_encoder(folder: str, mesh: Mesh) -> Extractor:
    """Read an encoder's folder.

    An image is resized whole to the side that the preprocessor cuts out of the middle, so that no
    border of a square image is lost.

    Args:
      folder: of the model, as transformers writes one of CLASSES: config.json, model.safetensors
        and preprocessor_config.json.
      mesh: the devices.

    Returns:
      Its image embeddings (CLIP) or its class token (DINOv2) as features, without logits.

    Raises:
      ValueError: if a file of the model is missing or damaged, or is of another model.
    """
    model, params = read_component(folder, expected=CLASSES)
    try:
        asked = clip_preparation(read_component_config(folder, _PREPROCESSOR))
    except ValueError as error:
        raise Refused(f"{folder}: {error}") from error
    preparation = asked._replace(size=asked.crop)
    module = model.module
    if isinstance(module, Clip):
        module, params = module.vision, {"params": params["params"]["vision"]}
    if isinstance(module, ClipVision):
        fits, dimension = preparation.crop == module.image_size, module.projection
        expected = str(module.image_size)
    else:
        assert isinstance(module, Dinov2)  # CLASSES has no other
        fits, dimension = preparation.crop % module.patch == 0, module.size.width
        expected = f"a multiple of {module.patch}"
    if not fits or module.channels != 3:
        raise Refused(
            f"{folder}: {_PREPROCESSOR} makes images of {preparation.crop} pixels and 3 channels, "
            f"config.json expects {expected} and {module.channels}; take both from one model."
        )
    return Extractor(
        f"{model.class_name}-{params_digest(params)[:12]}/{preparation.crop}",
        dimension,
        functools.partial(_features, module),
        params,
        whole_batch(_BATCH, mesh),
        mesh,
        prepare=lambda images: preparation(images),
    )


def _features(module: ClipVision | Dinov2, params: Params, images: Array) -> tuple[Array, None]:
    with jax.default_matmul_precision("highest"):  # accelerators round to TF32 or bfloat16
        found = module.apply(params, images)
    return (found.image_embeds if isinstance(module, ClipVision) else found), None
