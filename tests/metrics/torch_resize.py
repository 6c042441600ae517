"""What real torch makes of images at 299 x 299, live where it is installed and recorded.

    python tests/metrics/torch_resize.py

records `torch_resize.npz`: some rows and columns of one channel, for images larger and smaller than
299 and of that height (made on 2026-11-28 by torch 2.13.0+cpu). It needs torch and NumPy alone.
"""

from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_suffix(".npz")
SIZE = 299
SIDES = (32, 299, 320, 700)
"""Enlarged, unchanged, and shrunk by less and more than the kernel's width."""
PLACES = (0, 137, 298)
"""The rows and columns of 299 that are recorded: both ends and one between."""


def images(side, channels=3, seed=0):
    """Two images of noise, as wide as high and three pixels more."""
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (2, side, side + 3, channels)).astype(np.uint8)


def interpolate(given):
    """Bytes to [-1, 1] as pytorch-fid does: F.interpolate, bilinear, in float32."""
    import torch

    floats = torch.from_numpy(given).permute(0, 3, 1, 2).float() / 255
    resized = torch.nn.functional.interpolate(
        floats, size=(SIZE, SIZE), mode="bilinear", align_corners=False
    )
    return (2 * resized - 1).permute(0, 2, 3, 1).numpy()


def shifted_grid(given):
    """Bytes to bytes by a sampled grid whose corner is moved so that pixel 0 lies on pixel 0.

    StyleGAN's feature network has it so, to resize as TensorFlow 1 did.
    """
    import torch

    x = torch.from_numpy(given).permute(0, 3, 1, 2).double()
    h, w = x.shape[2:]
    theta = torch.eye(2, 3, dtype=torch.float64)
    theta[0, 2] = 1 / w - 1 / SIZE
    theta[1, 2] = 1 / h - 1 / SIZE
    grid = torch.nn.functional.affine_grid(
        theta[None].repeat(len(x), 1, 1), [len(x), x.shape[1], SIZE, SIZE], align_corners=False
    )
    sampled = torch.nn.functional.grid_sample(
        x, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.permute(0, 2, 3, 1).numpy()


REFERENCES = {"pytorch_fid": interpolate, "edm": shifted_grid}
"""Name of a preparation -> what torch makes."""


def kept(resized):
    """Return the recorded part [6, 299] of resized images: rows, then columns."""
    first = np.asarray(resized)[0, :, :, 0]
    return np.concatenate([first[list(PLACES)], first[:, list(PLACES)].T])


def main():
    made = {
        f"{name}_{side}": kept(reference(images(side))).astype(np.float32)
        for name, reference in REFERENCES.items()
        for side in SIDES
    }
    np.savez_compressed(RECORDED, **made)


if __name__ == "__main__":
    main()
