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
from collections.abc import Collection

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.scheduler import Diffusion
from dmd2_jax.families.stable_diffusion.original_names import UNET_PREFIX, unet_names
from dmd2_jax.weights.state_dict import Tensors
from dmd2_jax.weights.unpickle import shown
from dmd2_jax.weights.weight_files import Weights

__all__ = ["check_prediction", "holds_original_names", "unet_of"]

_BLOCK = re.compile(r"(.*?)(?:input_blocks|middle_block|output_blocks)\.\d+\.")
_PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "sample": "x0"}
_NAMES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
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
                "expected it once; write the one you mean to a file of its own: `dmd2 convert` "
                f"with prefix={shown(found[0])}."
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
