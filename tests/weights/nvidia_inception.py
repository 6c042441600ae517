"""NVIDIA's names of the Inception network's layers beside torchvision's, written out by hand.

Kept apart from the rule by which the package finds them.
"""

_BLOCKS = {
    "mixed": "5b",
    "mixed_1": "5c",
    "mixed_2": "5d",
    "mixed_3": "6a",
    "mixed_4": "6b",
    "mixed_5": "6c",
    "mixed_6": "6d",
    "mixed_7": "6e",
    "mixed_8": "7a",
    "mixed_9": "7b",
    "mixed_10": "7c",
}
_LAYERS = {
    "5": """
        conv branch1x1
        tower.conv branch5x5_1
        tower.conv_1 branch5x5_2
        tower_1.conv branch3x3dbl_1
        tower_1.conv_1 branch3x3dbl_2
        tower_1.conv_2 branch3x3dbl_3
        tower_2.conv branch_pool
    """,
    "6a": """
        conv branch3x3
        tower.conv branch3x3dbl_1
        tower.conv_1 branch3x3dbl_2
        tower.conv_2 branch3x3dbl_3
    """,
    "6": """
        conv branch1x1
        tower.conv branch7x7_1
        tower.conv_1 branch7x7_2
        tower.conv_2 branch7x7_3
        tower_1.conv branch7x7dbl_1
        tower_1.conv_1 branch7x7dbl_2
        tower_1.conv_2 branch7x7dbl_3
        tower_1.conv_3 branch7x7dbl_4
        tower_1.conv_4 branch7x7dbl_5
        tower_2.conv branch_pool
    """,
    "7a": """
        tower.conv branch3x3_1
        tower.conv_1 branch3x3_2
        tower_1.conv branch7x7x3_1
        tower_1.conv_1 branch7x7x3_2
        tower_1.conv_2 branch7x7x3_3
        tower_1.conv_3 branch7x7x3_4
    """,
    "7": """
        conv branch1x1
        tower_conv branch3x3_1
        tower_mixed_conv branch3x3_2a
        tower_mixed_conv_1 branch3x3_2b
        tower_1_conv branch3x3dbl_1
        tower_1_conv_1 branch3x3dbl_2
        tower_1_mixed_conv branch3x3dbl_3a
        tower_1_mixed_conv_1 branch3x3dbl_3b
        tower_2_conv branch_pool
    """,
}

PLACES = {
    "layers.conv": "Conv2d_1a_3x3",
    "layers.conv_1": "Conv2d_2a_3x3",
    "layers.conv_2": "Conv2d_2b_3x3",
    "layers.conv_3": "Conv2d_3b_1x1",
    "layers.conv_4": "Conv2d_4a_3x3",
    **{
        f"layers.{theirs}.{line.split()[0]}": f"Mixed_{ours}.{line.split()[1]}"
        for theirs, ours in _BLOCKS.items()
        for line in _LAYERS.get(ours, _LAYERS[ours[0]]).strip().splitlines()
    },
}
"""NVIDIA's name of a layer -> torchvision's, for all 94 convolutions."""

assert len(PLACES) == 94
