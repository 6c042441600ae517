"""NVIDIA's names for the tensors of the Inception network, which are those of TensorFlow's graph.

Its files (`inception-2015-12-05.pkl` of StyleGAN3 and EDM, `inception-2015-12-05.pt` of
StyleGAN2-ADA) hold the numbers of pytorch-fid's file in modules of other names:

    layers.conv_4.weight, .beta, .mean, .var    Conv2d_4a_3x3.conv.weight, .bn.bias, ...
    layers.mixed_5.tower_1.conv_2.weight        Mixed_6c.branch7x7dbl_3.conv.weight
    layers.mixed_9.tower_mixed_conv_1.weight    Mixed_7b.branch3x3_2b.conv.weight
    output.weight, output.bias                  fc.weight, fc.bias

The batch norms have no scale: it is 1.

Source: public rebuildings of the network from those files, which agree on names and shapes.
"""

from collections.abc import Mapping

import numpy as np

__all__ = ["torchvision_tensors"]

_STEM = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
_ANCHOR = "layers.conv.weight"
_LEAVES = {
    "weight": "conv.weight",
    "beta": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
}


def _tower(index: int, branch: str, count: int) -> dict[str, str]:
    return {
        f"{_counted('tower', index)}.{_counted('conv', i)}": f"{branch}_{i + 1}"
        for i in range(count)
    }


def _counted(name: str, index: int) -> str:
    return f"{name}_{index}" if index else name


_POOL = {"tower_2.conv": "branch_pool"}
_A = {"conv": "branch1x1", **_tower(0, "branch5x5", 2), **_tower(1, "branch3x3dbl", 3), **_POOL}
_B = {"conv": "branch3x3", **_tower(0, "branch3x3dbl", 3)}
_C = {"conv": "branch1x1", **_tower(0, "branch7x7", 3), **_tower(1, "branch7x7dbl", 5), **_POOL}
_D = {**_tower(0, "branch3x3", 2), **_tower(1, "branch7x7x3", 4)}
_E = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
_MIXED = {
    **{"5b": _A, "5c": _A, "5d": _A, "6a": _B},
    **{"6b": _C, "6c": _C, "6d": _C, "6e": _C, "7a": _D, "7b": _E, "7c": _E},
}
_LAYERS = {f"layers.{_counted('conv', i)}": f"Conv2d_{name}" for i, name in enumerate(_STEM)} | {
    f"layers.{_counted('mixed', i)}.{theirs}": f"Mixed_{block}.{ours}"
    for i, (block, layers) in enumerate(_MIXED.items())
    for theirs, ours in layers.items()
}
_NAMES = {"output.weight": "fc.weight", "output.bias": "fc.bias"} | {
    f"{theirs}.{leaf}": f"{ours}.{its}"
    for theirs, ours in _LAYERS.items()
    for leaf, its in _LEAVES.items()
}


def torchvision_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give NVIDIA's tensors torchvision's names, and batch norms their scale of 1.

    Args:
      tensors: by NVIDIA's names, all of them behind one prefix or none; others are returned as
        they are.

    Returns:
      The state dict that `inception_params` takes. What has no counterpart keeps its name.
    """
    found = [name for name in tensors if f".{name}".endswith(f".{_ANCHOR}")]
    if not found:
        return dict(tensors)
    prefix = min(found, key=len).removesuffix(_ANCHOR)
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    renamed = {_NAMES.get(name, name): tensor for name, tensor in plain.items()}
    scales = {
        f"{ours}.bn.weight": np.ones_like(plain[f"{theirs}.beta"])
        for theirs, ours in _LAYERS.items()
        if f"{theirs}.beta" in plain
    }
    return renamed | scales
