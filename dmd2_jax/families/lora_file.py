"""Low-rank adapters as a file's tensors, named and laid out as peft and diffusers do.

    LAYER.lora_A.weight   down: [rank, in], or [rank, in, kh, kw] of a convolution
    LAYER.lora_B.weight   up:   [out, rank], or [out, rank, 1, 1]

LAYER is the published name of the layer. B holds the factor alpha / rank already, so that readers
that know of no alpha, and take alpha = rank, are right.
"""

import numpy as np

from dmd2_jax.families import state_dict
from dmd2_jax.networks.lora import LoraConfig, Naming
from dmd2_jax.typing import Params

__all__ = ["from_lora_tensors", "to_lora_tensors"]

_ENDS = {"down": "lora_A.weight", "up": "lora_B.weight"}


def to_lora_tensors(adapters: Params, config: LoraConfig, naming: Naming) -> dict[str, np.ndarray]:
    """Turn adapters into a file's tensors.

    Args:
      adapters: from `lora_init`.
      config: their settings.
      naming: the family's spelling of a kernel's path.

    Returns:
      Tensors by name, in torch's layouts, float32.
    """
    tensors = state_dict.to_tensors(adapters, _spelling(naming))
    return {name: _scaled(name, tensor, config.scale) for name, tensor in tensors.items()}


def from_lora_tensors(
    tensors: state_dict.Tensors, template: Params, config: LoraConfig, naming: Naming
) -> Params:
    """Turn a file's tensors into adapters.

    Args:
      tensors: as `to_lora_tensors` returns them.
      template: the adapters' shapes, `jax.eval_shape` of `lora_init`.
      config: their settings.
      naming: as in `to_lora_tensors`.

    Returns:
      The adapters, float32.

    Raises:
      ValueError: if they are of another rank, of other layers or of another base.
    """
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(_ENDS["down"])}
    if ranks - {config.rank}:
        raise ValueError(
            f"LoRA file of rank {', '.join(map(str, sorted(ranks)))}, expected "
            f"rank={config.rank}; set the rank to the file's."
        )
    unscaled = {name: _scaled(name, tensor, 1 / config.scale) for name, tensor in tensors.items()}
    try:
        return state_dict.to_params(unscaled, template, _spelling(naming))
    except ValueError as error:
        raise ValueError(
            f"LoRA file of other layers or of another base, expected those of the targets "
            f"{config.targets}; {error}"
        ) from error


def _spelling(naming: Naming) -> state_dict.Naming:
    def spell(path: tuple[str, ...]) -> str:
        layer = naming(("params", *path[1:-1], "kernel")).removesuffix(".weight")
        return f"{layer}.{_ENDS[path[-1]]}"

    return spell


def _scaled(name: str, tensor: np.ndarray, scale: float) -> np.ndarray:
    tensor = np.asarray(tensor, np.float32)
    return tensor * np.float32(scale) if name.endswith(_ENDS["up"]) else tensor
