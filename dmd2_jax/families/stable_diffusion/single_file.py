"""Checkpoints of one file, with the names of the programs that published them first.

| prefix                                   | part                                              |
|------------------------------------------|---------------------------------------------------|
| `model.diffusion_model.`                 | the U-Net                                         |
| `first_stage_model.`                     | the autoencoder                                   |
| `cond_stage_model.transformer.`          | SD 1.x: the text encoder, as transformers has it  |
| `cond_stage_model.model.`                | SD 2.x: the text encoder, as OpenCLIP has it      |
| `conditioner.embedders.0.transformer.`   | SDXL: the first, as transformers has it           |
| `conditioner.embedders.1.model.`         | SDXL: the second, as OpenCLIP has it              |

Two tensors without a meaning of their own say what the U-Net predicts: with `v_pred` it is v, with
`ztsnr` beside it the terminal SNR is zero.
"""

import logging
import re
from collections.abc import Collection, Mapping

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.openclip import text_to_openclip
from dmd2_jax.families.published.scheduler import Diffusion
from dmd2_jax.families.stable_diffusion.original_names import (
    AUTOENCODER_PREFIX,
    UNET_PREFIX,
    autoencoder_names,
    unet_names,
)
from dmd2_jax.weights.state_dict import Tensors
from dmd2_jax.weights.unpickle import shown
from dmd2_jax.weights.weight_files import Weights

__all__ = ["check_prediction", "holds_original_names", "original_checkpoint", "unet_of"]

_BLOCK = re.compile(r"(.*?)(?:input_blocks|middle_block|output_blocks)\.\d+\.")
_PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "sample": "x0"}
_NAMES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
_OPENCLIP = ".model."
_PREDICTS = "modelspec.prediction_type"

_log = logging.getLogger(__name__)


def holds_original_names(tensors: Tensors) -> bool:
    """Return whether a file's U-Net has the original names, under whatever prefix."""
    return any(_BLOCK.match(name) for name in tensors)


def unet_of(
    tensors: Tensors, names: Collection[str], prefix: str | None = None
) -> dict[str, np.ndarray]:
    """Take the U-Net out of a file of the original names.

    What else the file holds is left out, which is said.

    Args:
      tensors: the file's.
      names: of all the U-Net's tensors, as diffusers calls them.
      prefix: of the tensors to take; None: the usual one, or the only one.

    Returns:
      Tensors by diffusers' names; what the network does not know has its original one.

    Raises:
      Refused: if the file holds several U-Nets, none under the usual prefix.
    """
    if prefix is None:
        found = sorted({match[1] for name in tensors if (match := _BLOCK.match(name))})
        prefix = UNET_PREFIX if UNET_PREFIX in found else found[0]
        if prefix != UNET_PREFIX and len(found) > 1:
            raise Refused(
                f"the file holds a U-Net {len(found)} times, under {[shown(f) for f in found]}, "
                f"expected it once; `dmd2 convert` with `prefix={shown(found[0])}` writes one of "
                "them to a file of its own."
            )
    back = {original: name for name, original in unet_names(names).items()}
    taken, left = {}, set()
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            own = name.removeprefix(prefix)
            taken[back.get(own, own)] = tensor
        else:
            left.add(shown(name.split(".")[0]) + ".*")
    others = f"; left out {', '.join(sorted(left))}" if left else ""
    _log.warning(
        "took the U-Net of %d tensors under %r%s. Text encoders and autoencoder are those of the "
        "pipeline.",
        len(taken),
        prefix,
        others,
    )
    return taken


def check_prediction(weights: Weights, diffusion: Diffusion) -> None:
    """Refuse a file that says that it predicts something else than its scheduler says.

    Args:
      weights: the file.
      diffusion: of the scheduler's config.

    Raises:
      Refused: naming what says it.
    """
    said = {}
    if kind := _PREDICTIONS.get(weights.notes.get(_PREDICTS, "")):
        said[_PREDICTS] = kind
    if "v_pred" in weights.tensors:
        said["v_pred"] = "v"
    for name, kind in said.items():
        if kind != diffusion.kind:
            raise Refused(
                f"the file says by {name} that it predicts {_NAMES[kind]}, expected "
                f"{_NAMES.get(diffusion.kind, diffusion.kind)} as in the pipeline's "
                "scheduler_config.json; give the pipeline that this model was made from."
            )
    if "ztsnr" in weights.tensors and not diffusion.zero_snr:
        raise Refused(
            "the file says by ztsnr that its terminal SNR is zero, expected the pipeline's "
            "scheduler_config.json to say so too (rescale_betas_zero_snr); give the pipeline that "
            "this model was made from."
        )


def original_checkpoint(
    unet: Tensors, autoencoder: Tensors, encoders: Mapping[str, Tensors], diffusion: Diffusion
) -> dict[str, np.ndarray]:
    """Put the parts of a pipeline together as one file of the original names.

    Args:
      unet, autoencoder: by diffusers' names.
      encoders: prefix of the table above -> a text encoder's tensors, as transformers calls them.
      diffusion: of the U-Net.

    Returns:
      Tensors by name.
    """
    names = unet_names(unet)
    made = {UNET_PREFIX + names[name]: tensor for name, tensor in unet.items()}
    names = autoencoder_names(autoencoder)
    for name, tensor in autoencoder.items():
        # The original keeps the maps of this attention as convolutions of one pixel.
        pixel = ".mid_block.attentions." in name and tensor.ndim == 2
        made[AUTOENCODER_PREFIX + names[name]] = tensor[:, :, None, None] if pixel else tensor
    for prefix, tensors in encoders.items():
        named = text_to_openclip(tensors) if prefix.endswith(_OPENCLIP) else tensors
        made |= {prefix + name: tensor for name, tensor in named.items()}
    if diffusion.kind == "v":
        made["v_pred"] = np.zeros(0, np.float32)
        if diffusion.zero_snr:
            made["ztsnr"] = np.zeros(0, np.float32)
    return made
