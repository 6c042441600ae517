"""A whole student as one file of the original names, with the base's other parts in it."""

from pathlib import Path
from typing import Any

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.folder import (
    cast_tensors,
    read_component_config,
    read_component_tensors,
)
from dmd2_jax.families.published.model import CLASSES, class_of
from dmd2_jax.families.published.pipeline import PipelineIndex
from dmd2_jax.families.published.scheduler import Diffusion
from dmd2_jax.families.stable_diffusion.single_file import original_checkpoint
from dmd2_jax.weights.state_dict import Tensors, write_safetensors

__all__ = ["SINGLE_FILE", "write_single_file"]

SINGLE_FILE = "checkpoint.safetensors"
"""What the file is called in its folder."""

_OPENCLIP_ACTIVATION = "gelu"  # OpenAI's own encoders have quick_gelu


def write_single_file(
    base: PipelineIndex, unet: Tensors, diffusion: Diffusion, folder: Path, *, dtype: str
) -> None:
    """Write a checkpoint that ComfyUI, A1111 and Forge open.

    Args:
      base: the pipeline whose autoencoder and text encoders go into it, as they are there.
      unet: the student's tensors, by diffusers' names.
      diffusion: what it was trained on.
      folder: an empty one.
      dtype: of the U-Net's tensors.

    Raises:
      ValueError: if a part of the base is missing, damaged, or of another class, or the weights do
        not fit the dtype.
      OSError: if the disk refuses.
    """
    autoencoder = _part(base, "vae", "AutoencoderKL")
    encoders = {_prefix(base, part): _part(base, part) for _, part in base.text_parts}
    tensors = original_checkpoint(cast_tensors(unet, dtype), autoencoder, encoders, diffusion)
    write_safetensors(tensors, folder / SINGLE_FILE)


def _prefix(base: PipelineIndex, part: str) -> str:
    """Return the prefix under which the original program has a text encoder."""
    config = read_component_config(base.part(part))
    if len(base.text_parts) > 1:
        second = part == base.text_parts[1][1]
        return f"conditioner.embedders.{'1.model' if second else '0.transformer'}."
    openclip = config.get("hidden_act") == _OPENCLIP_ACTIVATION
    return f"cond_stage_model.{'model' if openclip else 'transformer'}."


def _part(base: PipelineIndex, part: str, only: str = "") -> dict[str, np.ndarray]:
    """Read a part's tensors under today's names."""
    folder = base.part(part)
    try:
        config: dict[str, Any] = read_component_config(folder)
        kind = CLASSES[class_of(config, (only,) if only else base.expected(part))]
        tensors = read_component_tensors(folder, kind.file_stem, base.variant_of(part))
    except ValueError as error:
        raise Refused(f"{folder}: {error}") from error
    return dict(kind.modernise(tensors))
