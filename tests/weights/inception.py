"""Names and shapes of the state dict of pytorch-fid's InceptionV3, written down from its tables.

Kept apart from the network, so that a wrong width there is found by its name.
"""

_STEM = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
}


def _a(c, pool):
    return {
        "branch1x1": (64, c, 1, 1),
        "branch5x5_1": (48, c, 1, 1),
        "branch5x5_2": (64, 48, 5, 5),
        "branch3x3dbl_1": (64, c, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
        "branch_pool": (pool, c, 1, 1),
    }


def _c(w):
    return {
        "branch1x1": (192, 768, 1, 1),
        "branch7x7_1": (w, 768, 1, 1),
        "branch7x7_2": (w, w, 1, 7),
        "branch7x7_3": (192, w, 7, 1),
        "branch7x7dbl_1": (w, 768, 1, 1),
        "branch7x7dbl_2": (w, w, 7, 1),
        "branch7x7dbl_3": (w, w, 1, 7),
        "branch7x7dbl_4": (w, w, 7, 1),
        "branch7x7dbl_5": (192, w, 1, 7),
        "branch_pool": (192, 768, 1, 1),
    }


def _e(c):
    return {
        "branch1x1": (320, c, 1, 1),
        "branch3x3_1": (384, c, 1, 1),
        "branch3x3_2a": (384, 384, 1, 3),
        "branch3x3_2b": (384, 384, 3, 1),
        "branch3x3dbl_1": (448, c, 1, 1),
        "branch3x3dbl_2": (384, 448, 3, 3),
        "branch3x3dbl_3a": (384, 384, 1, 3),
        "branch3x3dbl_3b": (384, 384, 3, 1),
        "branch_pool": (192, c, 1, 1),
    }


_BLOCKS = {
    "Mixed_5b": _a(192, 32),
    "Mixed_5c": _a(256, 64),
    "Mixed_5d": _a(288, 64),
    "Mixed_6a": {
        "branch3x3": (384, 288, 3, 3),
        "branch3x3dbl_1": (64, 288, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
    },
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": {
        "branch3x3_1": (192, 768, 1, 1),
        "branch3x3_2": (320, 192, 3, 3),
        "branch7x7x3_1": (192, 768, 1, 1),
        "branch7x7x3_2": (192, 192, 1, 7),
        "branch7x7x3_3": (192, 192, 7, 1),
        "branch7x7x3_4": (192, 192, 3, 3),
    },
    "Mixed_7b": _e(1280),
    "Mixed_7c": _e(2048),
}


def _shapes():
    convs = dict(_STEM)
    for block, layers in _BLOCKS.items():
        convs |= {f"{block}.{layer}": shape for layer, shape in layers.items()}
    shapes = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in convs.items():
        shapes[f"{name}.conv.weight"] = shape
        for norm in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{norm}"] = shape[:1]
    return shapes


SHAPES = _shapes()
"""Name -> shape, in torch's layouts, of all 472 tensors."""
