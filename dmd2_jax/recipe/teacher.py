"""The teacher's weights: a file, and a LoRA file that is merged into them."""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.lora_file import add_lora, read_lora
from dmd2_jax.recipe.open import Family
from dmd2_jax.recipe.weights_file import teacher_file, weights_file
from dmd2_jax.typing import Params
from dmd2_jax.weights.state_dict import from_torch, to_torch

__all__ = ["load_teacher", "lora_file"]


def load_teacher(config: ConfigDict, family: Family, found: Path | None = None) -> Params:
    """Read the weights of a config's teacher, with `teacher.lora` merged into them.

    Args:
      config: the whole config.
      family: the networks.
      found: the file of its weights, where it has been found already.

    Raises:
      ValueError: if there are none, or they or the adapters are not the family's.
    """
    file, scale = lora_file(config), config.teacher.get("lora_scale", 1.0)
    if not math.isfinite(scale):
        raise Refused(f"config.teacher.lora_scale={scale}, expected a number; try 1.0.")
    params = family.load(found or teacher_file(config))
    return params if file is None else _merged(params, family, file, scale)


def lora_file(config: ConfigDict) -> Path | None:
    """Find the LoRA file of a config's teacher; None: it has none.

    Raises:
      ValueError: if it does not exist.
    """
    return weights_file(config.teacher.lora, "") if config.teacher.get("lora") else None


def _merged(params: Params, family: Family, file: Path, scale: float) -> Params:
    names = getattr(family, "original_names", dict)()
    layers = read_lora(file, family.tensor_shapes(), names)
    flat = dict(flatten_dict(params))
    for path, leaf in flat.items():
        layer = layers.get(family.tensor_name(path).removesuffix(".weight"))
        if layer is not None and path[-1] == "kernel":
            kernel = to_torch(np.asarray(leaf, np.float32))
            flat[path] = jnp.asarray(from_torch(add_lora(kernel, layer, scale)))
    print(f"merged {len(layers)} adapters of {file} into the teacher, at scale {scale:g}.")
    return unflatten_dict(flat)
