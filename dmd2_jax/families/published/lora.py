"""Low-rank adapters as a file's tensors, named and laid out as peft and diffusers do.

    LAYER.lora_A.weight   down: [rank, in], or [rank, in, kh, kw] of a convolution
    LAYER.lora_B.weight   up:   [out, rank], or [out, rank, 1, 1]

LAYER is the published name of the layer. B holds the factor alpha / rank already, so that readers
that know of no alpha, and take alpha = rank, are right.
"""

from collections.abc import Mapping

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.lora import LoraConfig, Naming
from dmd2_jax.typing import Params
from dmd2_jax.weights import state_dict

__all__ = ["check_lora_tensors", "from_lora_tensors", "to_lora_tensors"]

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
        raise Refused(
            f"LoRA file of rank {', '.join(map(str, sorted(ranks)))}, expected "
            f"rank={config.rank}; set the rank to the file's."
        )
    unscaled = {name: _scaled(name, tensor, 1 / config.scale) for name, tensor in tensors.items()}
    try:
        return state_dict.to_params(unscaled, template, _spelling(naming))
    except ValueError as error:
        raise Refused(
            f"LoRA file of other layers or of another base, expected those of the targets "
            f"{config.targets}; {error}"
        ) from error


def check_lora_tensors(
    tensors: state_dict.Tensors, base: Mapping[str, tuple[int, ...]], rank: int | None = None
) -> int:
    """Refuse tensors that are no adapters of a network.

    Args:
      tensors: as `to_lora_tensors` returns them.
      base: shapes of the network's tensors by name.
      rank: that they must have; None: any one.

    Returns:
      Their rank.

    Raises:
      ValueError: if a tensor is missing, of another rank, or of another base.
    """
    layers = {name.rpartition(".lora_")[0] for name in tensors}
    wanted = {f"{layer}.{end}" for layer in layers for end in _ENDS.values()}
    if not tensors or wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))[:3]
        raise Refused(
            f"no LoRA file: got {len(tensors)} tensors, {odd} without their pairs, expected "
            "LAYER.lora_A.weight and LAYER.lora_B.weight; give the *_lora.safetensors of a run."
        )
    wrong, ranks = [], set()
    for layer in sorted(layers):
        down, up = (tensors[f"{layer}.{end}"].shape for end in _ENDS.values())
        shape = base.get(f"{layer}.weight")
        ranks.add(down[0])
        pointwise = (1,) * (len(down) - 2)
        if shape != (up[0], *down[1:]) or up[1:] != (down[0], *pointwise):
            wrong.append(f"{layer} (up {up}, down {down}, base {shape})")
    if wrong:
        raise Refused(
            f"LoRA of another base: {len(wrong)} of {len(layers)} layers are not the network's, "
            f"{'; '.join(wrong[:3])} among them, expected those it was trained on; give that base."
        )
    if len(ranks) > 1 or rank not in (None, *ranks):
        raise Refused(
            f"LoRA of rank {', '.join(map(str, sorted(ranks)))}, expected "
            f"{rank or 'one rank'}; give the file that the run wrote."
        )
    return ranks.pop()


def _spelling(naming: Naming) -> state_dict.Naming:
    def spell(path: tuple[str, ...]) -> str:
        layer = naming(("params", *path[1:-1], "kernel")).removesuffix(".weight")
        return f"{layer}.{_ENDS[path[-1]]}"

    return spell


def _scaled(name: str, tensor: np.ndarray, scale: float) -> np.ndarray:
    tensor = np.asarray(tensor, np.float32)
    return tensor * np.float32(scale) if name.endswith(_ENDS["up"]) else tensor
